/* describe: what an artefact says about itself, whatever it is compiled for. */
#ifndef MC_DRIVER_DESCRIBE_H
#define MC_DRIVER_DESCRIBE_H

#include "driver/unit.h"

/* Both of a module in stage plan, in the unit's arena. */
mc_str mc_describe_rules(mc_unit *u); /* all weight maps as one .moe text, or only the chosen one */
mc_str mc_describe_meta(mc_unit *u);  /* a JSON object: parameters, summary, params, train */

#endif
