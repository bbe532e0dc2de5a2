/* messages: what to print when a test was refused something. */
#ifndef MC_SUPPORT_MESSAGES_H
#define MC_SUPPORT_MESSAGES_H

#include "ir/diag.h"

/* Every diagnostic, rendered; in the arena of the diagnostics. */
mc_str mc_messages(const mc_diags *diags);
/* The errors among them. */
mc_str mc_errors(const mc_diags *diags);

#endif
