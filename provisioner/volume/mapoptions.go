// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// MapOptions are options of Linux's rbd driver. The zero value is none. Only nodes with our
// plugin use them.
type MapOptions struct {
	text string
	// v2 says that ms_mode asks for message protocol 2.
	v2 bool
}

// String returns the options as the driver takes them: separated by commas, in the order
// in which they were given.
func (o MapOptions) String() string { return o.text }

// Protocol returns the message protocol that the driver speaks to monitors and OSDs.
func (o MapOptions) Protocol() Protocol {
	if o.v2 {
		return ProtocolV2
	}
	return ProtocolV1
}

// mapOption says which values an option takes: one of a list, a number within bounds, or
// none at all.
type mapOption struct {
	values   []string
	min, max uint64
	// power says that the number must be a power of two.
	power bool
}

// mapOptions are the options that a class may give. Sources: Documentation/ABI and
// net/ceph/ceph_common.c, drivers/block/rbd.c of Linux 6.12; rbd(8), "Kernel rbd options".
var mapOptions = map[string]mapOption{
	"ms_mode":           {values: []string{"legacy", "crc", "secure", "prefer-crc", "prefer-secure"}},
	"read_from_replica": {values: []string{"no", "balance", "localize"}},
	"compression_hint":  {values: []string{"none", "compressible", "incompressible"}},
	// In what the driver calls seconds.
	"osd_request_timeout": {max: 86400},
	"osd_idle_ttl":        {min: 1, max: 86400},
	"osdkeepalive":        {min: 1, max: 86400},
	"queue_depth":         {min: 1, max: 1 << 16},
	// In bytes; the driver's own smallest is a sector.
	"alloc_size":                 {min: 512, max: 1 << 26, power: true},
	"notrim":                     {},
	"abort_on_full":              {},
	"rxbounce":                   {},
	"share":                      {},
	"noshare":                    {},
	"crc":                        {},
	"nocrc":                      {},
	"tcp_nodelay":                {},
	"notcp_nodelay":              {},
	"cephx_require_signatures":   {},
	"nocephx_require_signatures": {},
	"cephx_sign_messages":        {},
	"nocephx_sign_messages":      {},
}

// refusedOptions are known to the driver, but not a class's to give.
var refusedOptions = map[string]string{
	"name": "the parameter userId says it", "key": keyOption, "secret": keyOption, "keyfile": keyOption,
	"ro": readOnlyOption, "read_only": readOnlyOption, "rw": readOnlyOption, "read_write": readOnlyOption,
	"mount_timeout": "the node plugin sets it", "fsid": "the node plugin checks it", "ip": "it would be the same on each node",
	"_pool_ns":  "RADOS namespaces are not supported",
	"exclusive": lockOption, "lock_on_read": lockOption, "lock_timeout": lockOption,
}

const (
	keyOption      = "keys come from the secret of userSecretName"
	readOnlyOption = "the claim's access mode decides"
	lockOption     = "images have no feature exclusive-lock"
)

// ParseMapOptions reads options separated by commas, as in "ms_mode=prefer-crc,queue_depth=64".
// White space around them does not matter. The error names each fault, in one line.
func ParseMapOptions(text string) (MapOptions, error) {
	var options, faults, seen []string
	var v2 bool
	for option := range strings.SplitSeq(text, ",") {
		option = strings.TrimSpace(option)
		if option == "" {
			continue
		}
		name, value, given := strings.Cut(option, "=")
		if fault := checkMapOption(name, value, given); fault != "" {
			faults = append(faults, fault)
			continue
		}
		if slices.Contains(seen, name) {
			faults = append(faults, fmt.Sprintf("%q is given twice", name))
			continue
		}
		seen, options = append(seen, name), append(options, option)
		v2 = v2 || name == "ms_mode" && value != "legacy"
	}
	if len(faults) > 0 {
		return MapOptions{}, errors.New(strings.Join(faults, "; "))
	}
	return MapOptions{strings.Join(options, ","), v2}, nil
}

// checkMapOption returns what is wrong with an option, or "".
func checkMapOption(name, value string, given bool) string {
	if why := refusedOptions[name]; why != "" {
		return fmt.Sprintf("%q can't be given here: %s", name, why)
	}
	option, known := mapOptions[name]
	takesNumber := option.max > 0
	switch {
	case !known:
		return fmt.Sprintf("%q is no option that is known here: known are %s", name, strings.Join(MapOptionNames(), ", "))
	case !takesNumber && option.values == nil && given:
		return fmt.Sprintf("%q takes no value", name)
	case option.values != nil && !slices.Contains(option.values, value):
		return fmt.Sprintf("%q must be one of %s", name, strings.Join(option.values, ", "))
	case takesNumber:
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil || n < option.min || n > option.max || option.power && n&(n-1) != 0 {
			power := ""
			if option.power {
				power = ", a power of two"
			}
			return fmt.Sprintf("%q must be a number from %d to %d%s", name, option.min, option.max, power)
		}
	}
	return ""
}

// MapOptionNames returns the sorted names of the options that ParseMapOptions takes.
func MapOptionNames() []string {
	names := make([]string, 0, len(mapOptions))
	for name := range mapOptions {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
