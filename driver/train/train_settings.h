/* train_settings: what the train block of a model asks of a trainer. The text comes as the front end writes it into the
 * module: "loss cross_entropy; aux switch, weight = 0.01; optimizer adamw(lr = 0.001, betas = [0.9, 0.95])". */
#ifndef MC_DRIVER_TRAIN_SETTINGS_H
#define MC_DRIVER_TRAIN_SETTINGS_H

#include "driver/train/adamw.h"
#include "driver/train/train_schedule.h"
#include "moec/train.h"
#include "runtime/base/file.h"

typedef struct mc_train_settings {
    uint64_t seed;
    double aux_weight, z_weight;
    bool has_bias; /* balancing by a bias instead of, or beside, a loss */
    moec_bias_rule bias_rule;
    double bias_rate, bias_decay, bias_until;
    mc_bias_schedule bias_schedule;
    mc_adamw optimizer;
    mc_schedule schedule;
} mc_train_settings;

/* What a text without a train block means. */
mc_train_settings mc_train_settings_default(void);
/* Errors: UNSUPPORTED (a setting that this trainer does not execute), SYNTAX (a value that cannot be). */
moec_status mc_train_settings_parse(const char *text, mc_train_settings *out, mc_fault *fault) MOEC_MUST_USE;

#endif
