/* train_report: what a run prints. Standard output gets a line every `every` steps (text or JSON); a terminal on
 * standard error sees each step in one line that is rewritten in place. */
#ifndef MC_DRIVER_TRAIN_REPORT_H
#define MC_DRIVER_TRAIN_REPORT_H

#include "driver/train/train_bar.h"
#include "driver/train/trainer.h"

#include <stdio.h>

typedef struct mc_train_printer {
    FILE *out, *terminal; /* terminal: NULL when there is none */
    bool json, utf8;
    uint64_t every;
    uint64_t n_lines;
} mc_train_printer;

/* Looks at what standard output and error are. every 0: 10. */
mc_train_printer mc_train_printer_default(bool json, uint64_t every);
void mc_train_print_begin(const mc_train_printer *p, const mc_trainer *t);
void mc_train_print_step(mc_train_printer *p, const mc_trainer *t, const mc_train_report *r);
void mc_train_print_checkpoint(const mc_train_printer *p, const char *directory, uint64_t step);
/* Clears the rewritten line, before anything else is printed. */
void mc_train_print_clear(const mc_train_printer *p);

#endif
