/* progress: one line on a terminal while a command takes long. It appears after half a second, is rewritten in place,
 * and is gone before anything else is printed. Where standard error is no terminal, nothing happens. */
#ifndef MC_DRIVER_PROGRESS_H
#define MC_DRIVER_PROGRESS_H

void mc_progress_begin(void);
void mc_progress_step(const char *what); /* a literal: "linking" */
/* Clears the line. Must be called before printing; may be called without begin. */
void mc_progress_end(void);

#endif
