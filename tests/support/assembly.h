/* assembly: what can be seen in the text of kernels that cannot be run here. */
#ifndef MC_SUPPORT_ASSEMBLY_H
#define MC_SUPPORT_ASSEMBLY_H

/* Registers stored to the stack or loaded from it inside loops of a function: `label` is its line, "\nname:". The test
 * fails when there is none. */
int mc_spills_in_loops(const char *assembly, const char *label);

#endif
