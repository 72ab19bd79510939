// SPDX-License-Identifier: Apache-2.0

//go:build cgo

// Who watches an object: OSDs tell, but librados has a call for it in C++ only.

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <list>
#include <string>

#include <dlfcn.h>
#include <rados/librados.h>

#include "watchers.h"

namespace {

// What librados::IoCtx is: a handle, which its own functions make and drop.
// Source: src/include/rados/librados.hpp in Ceph, which is no part of the packages
// that librbd is built with.
struct IoCtx {
	void *impl;
};

// The functions of librados::v14_2_0::IoCtx. Their names hold the version of this
// interface, which is the same since Ceph 14: in a librados that changes it there
// are none of these names, and nothing else is called by mistake.
struct Functions {
	void (*construct)(IoCtx *);
	void (*destroy)(IoCtx *);
	void (*from)(rados_ioctx_t, IoCtx &);
	int (*list)(IoCtx *, const std::string &, std::list<obj_watch_t> *);
};

template <typename F> void find(F &function, const char *name)
{
	function = reinterpret_cast<F>(dlsym(RTLD_DEFAULT, name));
}

Functions findFunctions()
{
	Functions f;
	find(f.construct, "_ZN8librados7v14_2_05IoCtxC1Ev");
	find(f.destroy, "_ZN8librados7v14_2_05IoCtxD1Ev");
	find(f.from, "_ZN8librados7v14_2_05IoCtx18from_rados_ioctx_tEPvRS1_");
	find(f.list, "_ZN8librados7v14_2_05IoCtx13list_watchersERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEEPNS2_4listI11obj_watch_tSaISB_EEE");
	return f;
}

int list(rados_ioctx_t io, const char *object, std::list<obj_watch_t> *watchers)
{
	static const Functions f = findFunctions();
	if (!f.construct || !f.destroy || !f.from || !f.list)
		return -EOPNOTSUPP;
	IoCtx c;
	f.construct(&c);
	f.from(io, c);
	int r = f.list(&c, object, watchers);
	f.destroy(&c);
	return r;
}

} // namespace

int watcher_addresses(rados_ioctx_t io, const char *object, char **addresses)
try {
	*addresses = nullptr;
	std::list<obj_watch_t> watchers;
	int r = list(io, object, &watchers);
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
