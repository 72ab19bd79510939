// SPDX-License-Identifier: Apache-2.0

package rbd

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
)

// Key is the secret key of a Ceph user. It prints as "[redacted]" with every verb of
// package fmt and in JSON and text, even from inside another struct: a key must not reach
// a log, an event or an error. The zero Key holds nothing.
//
// Only ParseKey makes one, and only Reveal returns the text.
type Key struct {
	// A pointer: a printer that bypasses our methods by reflection finds only an address.
	text *string
}

const redacted = "[redacted]"

// cephxHeader is the length of what precedes the secret in a cephx key: type (2 bytes),
// time of creation (8), and length of the secret (2), all little endian.
// Source: CryptoKey::decode in Ceph's src/auth/Crypto.cc.
const cephxHeader = 12

// KeyTypeAES is the type of key that every Ceph and every kernel can use, KeyTypeAES256K
// the only one that clusters made with Ceph 20.2.4 make.
const (
	KeyTypeAES     = "aes"
	KeyTypeAES256K = "aes256k"
)

// keyType returns the name that Ceph gives to a type of key, and the length of its
// secret, or 0 for types that came later.
// Source: CEPH_CRYPTO_AES and CEPH_CRYPTO_AES256KRB5 in Ceph's src/include/ceph_fs.h.
func keyType(number uint16) (name string, length int) {
	switch number {
	case 1:
		return KeyTypeAES, 16
	case 2:
		return KeyTypeAES256K, 32
	}
	return fmt.Sprint("number ", number), 0
}

// ParseKey checks that text is a cephx key as "ceph auth get-key" prints it: base64 of a
// typed secret, whose length must be that of its type. Types that came later pass. The
// caller cuts white space around the text. The error wraps ErrInvalidKey and never contains
// the text. librados would print a key that it can't decode to standard error.
func ParseKey(text string) (Key, error) {
	raw, err := base64.StdEncoding.Strict().DecodeString(text)
	switch {
	case text == "":
		return Key{}, fmt.Errorf("%w: it is empty", ErrInvalidKey)
	case err != nil, strings.ContainsAny(text, "\r\n"): // the decoder skips line breaks; librados does not
		// Leave out the decoder's own error: it names the offending byte.
		return Key{}, fmt.Errorf("%w: it is not base64", ErrInvalidKey)
	case len(raw) <= cephxHeader:
		return Key{}, fmt.Errorf("%w: it is too short", ErrInvalidKey)
	case binary.LittleEndian.Uint16(raw) == 0:
		return Key{}, fmt.Errorf("%w: it is of type none", ErrInvalidKey)
	case int(binary.LittleEndian.Uint16(raw[cephxHeader-2:])) != len(raw)-cephxHeader:
		return Key{}, fmt.Errorf("%w: it is cut short or has something behind it", ErrInvalidKey)
	}
	_, length := keyType(binary.LittleEndian.Uint16(raw))
	if length != 0 && length != len(raw)-cephxHeader {
		return Key{}, fmt.Errorf("%w: its length is not that of its type", ErrInvalidKey)
	}
	return Key{text: &text}, nil
}

// Type returns the name of the key's type, as ceph auth's option --key-type takes it, or
// "number N" for a type that came later. A zero Key has none.
func (k Key) Type() string {
	raw, _ := base64.StdEncoding.DecodeString(k.Reveal()) // ParseKey has checked it
	if len(raw) == 0 {
		return ""
	}
	name, _ := keyType(binary.LittleEndian.Uint16(raw))
	return name
}

// Reveal returns the key's text, for librados and the kernel alone.
func (k Key) Reveal() string {
	if k.text == nil {
		return ""
	}
	return *k.text
}

// IsZero reports whether k holds no key.
func (k Key) IsZero() bool { return k.text == nil }

// Equal reports whether k and other hold the same key.
func (k Key) Equal(other Key) bool { return k.Reveal() == other.Reveal() }

// Format prints "[redacted]", whatever the verb.
func (k Key) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// String returns "[redacted]".
func (k Key) String() string { return redacted }

// MarshalText returns "[redacted]"; JSON uses it too.
func (k Key) MarshalText() ([]byte, error) { return []byte(redacted), nil }
