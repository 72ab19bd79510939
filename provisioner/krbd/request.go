// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"
)

// maxLine is the size of a page: the kernel would take the rest of a longer line for
// another one.
const maxLine = 4096

// check makes sure that what the driver reads is what was asked for: it splits the line at
// white space and the options at commas.
func (r Request) check() error {
	for _, field := range []struct{ what, text, separators string }{
		{"pool", r.Pool, ""}, {"image", r.Image, ""}, {"user", r.User, ","},
	} {
		switch {
		case field.text == "":
			return fmt.Errorf("%w: the %s is missing", ErrInvalid, field.what)
		case strings.ContainsFunc(field.text, splits) || strings.ContainsAny(field.text, field.separators):
			return fmt.Errorf("%w: the name of the %s has white space, a comma or the like in it", ErrInvalid, field.what)
		}
	}
	if strings.ContainsFunc(r.Options.String(), splits) {
		return fmt.Errorf("%w: the options have white space in them", ErrInvalid)
	}
	if len(r.Monitors) == 0 {
		return fmt.Errorf("%w: no monitor is given whose protocol is that of the options", ErrInvalid)
	}
	for _, monitor := range r.Monitors {
		if addr, err := netip.ParseAddrPort(monitor); err != nil || addr.Addr().Zone() != "" {
			return fmt.Errorf("%w: monitor %q is no IP address with a port", ErrInvalid, monitor)
		}
	}
	if r.Key.IsZero() {
		return fmt.Errorf("%w: the user's key is missing", ErrInvalid)
	}
	if len(r.line(newKeyName(), 24*time.Hour)) >= maxLine {
		return fmt.Errorf("%w: names, options and monitors have %d characters or more together: name fewer monitors", ErrInvalid, maxLine)
	}
	return nil
}

// splits reports whether the driver could see two words, or the end of the line.
func splits(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }

// line returns what the driver is told, with the name of a key in place of the key: what is
// written here can be read in sysfs as long as the device is there.
func (r Request) line(keyName string, timeout time.Duration) string {
	seconds := max(1, int((timeout+time.Second-1)/time.Second))
	options := fmt.Sprintf("name=%s,key=%s,mount_timeout=%d", r.User, keyName, seconds)
	if r.ReadOnly {
		options += ",ro"
	}
	if more := r.Options.String(); more != "" {
		options += "," + more
	}
	return fmt.Sprintf("%s %s %s %s -", strings.Join(r.Monitors, ","), options, r.Pool, r.Image)
}
