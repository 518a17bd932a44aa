/* What this library was compiled from, so that one left over from other sources is not used. */

#ifndef SOURCES_DIGEST
#error "compiled by build.py, which says -DSOURCES_DIGEST"
#endif

const char *sources_digest(void) { return SOURCES_DIGEST; }
