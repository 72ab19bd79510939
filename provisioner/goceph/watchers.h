// SPDX-License-Identifier: Apache-2.0

#ifndef WATCHERS_H
#define WATCHERS_H

#include <rados/librados.h>

#ifdef __cplusplus
extern "C" {
#endif

// watcher_addresses gives the addresses of those who watch an object, one a line.
// The caller frees them. It returns 0 or a negative error number.
int watcher_addresses(rados_ioctx_t io, const char *object, char **addresses);

#ifdef __cplusplus
}
#endif

#endif
