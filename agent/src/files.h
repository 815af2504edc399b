/* Files that the host gives this guest. */
#ifndef BANGER_FILES_H
#define BANGER_FILES_H

/* Copy the tree banger/files below old_root into /, modes kept, owner root. What fails is said. */
void files_copy(int old_root);

/* Put this very program at `path`, executable. 0, or -1 with errno. */
int copy_self(const char *path);

#endif
