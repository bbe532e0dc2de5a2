/* markdown: the fenced blocks and links of a page of documentation, so that tests can try what the page says.
 *
 *     ```moe file=tiny.moe        info: "moe file=tiny.moe"
 *     text
 *     ```
 */
#ifndef MC_SUPPORT_MARKDOWN_H
#define MC_SUPPORT_MARKDOWN_H

#include "runtime/base/str.h"
#include "runtime/base/vec.h"

typedef struct mc_block_of_page {
    mc_str info; /* the words after the opening fence */
    mc_str text; /* with the newline of its last line */
    int line;    /* of the opening fence, from 1 */
} mc_block_of_page;

typedef struct mc_page {
    MC_VEC(mc_block_of_page) blocks;
    MC_VEC(mc_str) links; /* targets of [text](target), outside of blocks */
    bool open;            /* the last block is not closed */
} mc_page;

/* Views into `text`, lists in the arena. */
mc_page mc_page_parse(mc_str text, mc_arena *arena);

/* Is `word` one of the words of the info? */
bool mc_info_has(mc_str info, const char *word);
/* The value of key=value, or empty. */
mc_str mc_info_value(mc_str info, const char *key);

/* Does the text fit the pattern, in which "..." stands for any text? Blanks at the ends of lines do not count. */
bool mc_text_fits(mc_str pattern, mc_str text);

#endif
