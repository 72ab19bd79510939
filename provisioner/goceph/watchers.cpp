// SPDX-License-Identifier: Apache-2.0

//go:build cgo

// Who watches an object: OSDs tell, but librados has a call for it in C++ only.

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <list>
#include <string>

#include <rados/librados.hpp>

#include "watchers.h"

int watcher_addresses(rados_ioctx_t io, const char *object, char **addresses)
try {
	*addresses = nullptr;
	std::list<obj_watch_t> watchers;
	librados::IoCtx c;
	librados::IoCtx::from_rados_ioctx_t(io, c);
	int r = c.list_watchers(object, &watchers);
	if (r < 0)
		return r;
	std::string lines;
	for (const auto &w : watchers) {
		lines.append(w.addr, strnlen(w.addr, sizeof(w.addr)));
		lines += '\n';
	}
	*addresses = strdup(lines.c_str());
	return *addresses ? 0 : -ENOMEM;
} catch (...) {
	return -ENOMEM; // no exception may reach Go
}
