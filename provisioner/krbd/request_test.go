// SPDX-License-Identifier: Apache-2.0

package krbd

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/rbd/rbdtest"
)

// TestRequests checks what is refused before anything is asked.
func TestRequests(t *testing.T) {
	for name, test := range map[string]struct {
		change func(*Request)
		text   string // "" if it is fine
	}{
		"as ever":                        {func(*Request) {}, ""},
		"IPv6":                           {func(r *Request) { r.Monitors[1] = "[2001:db8::1]:6789" }, ""},
		"an equals sign":                 {func(r *Request) { r.User, r.Pool = "a=b", "c=d" }, ""},
		"a comma in names":               {func(r *Request) { r.Pool, r.Image = "a,b", "c,d" }, ""},
		"no pool":                        {func(r *Request) { r.Pool = "" }, "the pool is missing"},
		"no image":                       {func(r *Request) { r.Image = "" }, "the image is missing"},
		"no user":                        {func(r *Request) { r.User = "" }, "the user is missing"},
		"no key":                         {func(r *Request) { r.Key = rbd.Key{} }, "key is missing"},
		"no monitor":                     {func(r *Request) { r.Monitors = nil }, "no monitor"},
		"a monitor's name":               {func(r *Request) { r.Monitors[1] = "ceph.example:6789" }, "ceph.example:6789"},
		"a monitor without a port":       {func(r *Request) { r.Monitors[1] = "10.0.0.2" }, `"10.0.0.2"`},
		"a monitor with an option":       {func(r *Request) { r.Monitors[1] = "10.0.0.2:6789 secret=x" }, "monitor"},
		"two monitors in one":            {func(r *Request) { r.Monitors[1] = "10.0.0.2:6789,10.0.0.3:6789" }, "monitor"},
		"a zone":                         {func(r *Request) { r.Monitors[1] = "[fe80::1%eth0]:6789" }, "monitor"},
		"an option in the user":          {func(r *Request) { r.User = "kube,secret=x" }, "user"},
		"white space in the user":        {func(r *Request) { r.User = "ku be" }, "user"},
		"white space in the pool":        {func(r *Request) { r.Pool = "rbd other" }, "pool"},
		"a line break in the image":      {func(r *Request) { r.Image = "img\n10.0.0.3:6789" }, "image"},
		"the end of a string":            {func(r *Request) { r.Image = "img\x00" }, "image"},
		"more than the kernel takes":     {func(r *Request) { r.Image = strings.Repeat("i", 4096) }, "4096"},
		"a vertical tab, which is blank": {func(r *Request) { r.Pool = "a\vb" }, "pool"},
	} {
		t.Run(name, func(t *testing.T) {
			d, f := newFake(t)
			r := request("img")
			test.change(&r)
			_, err := d.Map(t.Context(), r)
			if test.text == "" {
				if err != nil || len(f.mapped()) != 1 {
					t.Errorf("wrote %q, got %v", f.mapped(), err)
				}
				return
			}
			wantError(t, err, ErrInvalid, Request{Key: r.Key}, test.text)
			if len(f.mapped()) != 0 {
				t.Errorf("wrote %q", f.mapped())
			}
		})
	}
}

// FuzzRequest checks that the driver reads what was meant, whatever the names are.
func FuzzRequest(f *testing.F) {
	f.Add("10.0.0.1:6789", "kube", "rbd", "img", false)
	f.Add("[::1]:3300", "a=b", "p\u00a0q", "i,j", true)
	f.Add("10.0.0.1:6789,", "u,key=x", "p -", "\t", true)
	key := rbdtest.NewKey()
	f.Fuzz(func(t *testing.T, monitor, user, pool, image string, readOnly bool) {
		r := Request{Monitors: []string{monitor, "10.0.0.9:6789"}, User: user, Key: key, Pool: pool, Image: image, ReadOnly: readOnly}
		if r.check() != nil {
			return
		}
		line := r.line("NAME", 1500*time.Millisecond)
		ro := ""
		if readOnly {
			ro = ",ro"
		}
		// As the kernel splits it: at what isspace of C says, up to the end of the string.
		got := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \f\n\r\t\v\x00", r) })
		want := []string{monitor + ",10.0.0.9:6789", fmt.Sprintf("name=%s,key=NAME,mount_timeout=2%s", user, ro), pool, image, "-"}
		if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
			t.Errorf("the driver reads %q, want %q", got, want)
		}
		if options := strings.Split(got[1], ","); len(options) != 3+len(ro)/3 {
			t.Errorf("the driver reads the options %q", options)
		}
		if monitors := strings.Split(got[0], ","); len(monitors) != 2 {
			t.Errorf("the driver reads the monitors %q", monitors)
		}
		if len(line) >= maxLine {
			t.Errorf("a line of %d bytes", len(line))
		}
	})
}
