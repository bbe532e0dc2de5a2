/* What jansson's archive reads instead of the C library's `stdin` (CMakeLists.txt renames it). Archives are built for
 * executables: this one reaches `stdin` in a way that the linker refuses in a shared library, only to ask whether a
 * file is it. Nobody here reads JSON from a FILE. */
void *mc_no_stdin;
