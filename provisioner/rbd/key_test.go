// SPDX-License-Identifier: Apache-2.0

package rbd

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"k8s.io/klog/v2/textlogger"
)

// cephxKey returns the text of a key with the given content, valid or not.
func cephxKey(kind, length uint16, secret string) string {
	raw := make([]byte, cephxHeader, cephxHeader+len(secret))
	binary.LittleEndian.PutUint16(raw, kind)
	binary.LittleEndian.PutUint16(raw[cephxHeader-2:], length)
	return base64.StdEncoding.EncodeToString(append(raw, secret...))
}

const aesSecret = "sixteen bytes ok"

func TestParseKey(t *testing.T) {
	good := cephxKey(1, 16, aesSecret)
	for _, tc := range []struct {
		name, text string
		want       string // end of the error, or empty
	}{
		{"as ceph auth get-key prints it", "AQBWbRdnAAAAABAA8Qmp2Q1Bjl0yKpoWtmYd9A==", ""},
		{"an AES key", good, ""},
		{"an aes256k key", cephxKey(2, 32, aesSecret+aesSecret), ""},
		{"a key of a type that came later", cephxKey(3, 5, "short"), ""},
		{"an AES key of half the length", cephxKey(1, 8, aesSecret[:8]), "its length is not that of its type"},
		{"an AES key as long as an aes256k key", cephxKey(1, 32, aesSecret+aesSecret), "its length is not that of its type"},
		{"an aes256k key as long as an AES key", cephxKey(2, 16, aesSecret), "its length is not that of its type"},
		{"an aes256k key cut short", cephxKey(2, 32, aesSecret+aesSecret[1:]), "it is cut short or has something behind it"},
		{"nothing", "", "it is empty"},
		{"a line break behind it", good + "\n", "it is not base64"},
		{"a line break inside", good[:8] + "\r\n" + good[8:], "it is not base64"},
		{"a blank before it", " " + good, "it is not base64"},
		{"the line of a keyring", "key = " + good, "it is not base64"},
		{"URL-safe base64", strings.NewReplacer("A", "-").Replace(good), "it is not base64"},
		{"no padding", strings.TrimRight(good, "="), "it is not base64"},
		{"bits set behind the end", good[:len(good)-3] + "t==", "it is not base64"},
		{"base64 of base64", base64.StdEncoding.EncodeToString([]byte(good)), "it is cut short or has something behind it"},
		{"base64 of too little", "QUJD", "it is too short"},
		{"a header without a secret", cephxKey(1, 0, ""), "it is too short"},
		{"the key of a cluster without authentication", cephxKey(0, 16, aesSecret), "it is of type none"},
		{"a secret cut short", cephxKey(1, 16, aesSecret[1:]), "it is cut short or has something behind it"},
		{"something behind the secret", cephxKey(1, 16, aesSecret+"!"), "it is cut short or has something behind it"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			key, err := ParseKey(tc.text)
			if tc.want == "" {
				if err != nil {
					t.Fatalf("got the error %q, want none", err)
				}
				if key.Reveal() != tc.text || key.IsZero() {
					t.Errorf("the key does not hold its text")
				}
				return
			}
			if !errors.Is(err, ErrInvalidKey) {
				t.Fatalf("got %v, want ErrInvalidKey", err)
			}
			if got, want := err.Error(), "malformed key: "+tc.want; got != want {
				t.Errorf("got %q, want %q", got, want)
			}
			if !key.IsZero() || key.Reveal() != "" {
				t.Errorf("the key holds something in spite of the error")
			}
		})
	}
}

func TestKeyType(t *testing.T) {
	for want, key := range map[string]Key{
		"":             {},
		"aes":          mustParse(t, cephxKey(1, 16, aesSecret)),
		"aes256k":      mustParse(t, cephxKey(2, 32, aesSecret+aesSecret)),
		"number 65535": mustParse(t, cephxKey(65535, 1, "x")),
	} {
		if got := key.Type(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestKeyEqual(t *testing.T) {
	one, two := mustParse(t, cephxKey(1, 16, aesSecret)), mustParse(t, cephxKey(1, 16, "another 16 bytes"))
	if !one.Equal(mustParse(t, one.Reveal())) {
		t.Error("keys of the same text differ")
	}
	if one.Equal(two) || one.Equal(Key{}) {
		t.Error("different keys are equal")
	}
	if !(Key{}).Equal(Key{}) {
		t.Error("zero keys differ")
	}
}

// TestKeyIsNotPrinted prints a key in every way that a log line, an event or an
// error might.
func TestKeyIsNotPrinted(t *testing.T) {
	key := mustParse(t, cephxKey(1, 16, aesSecret))
	type nested struct{ Inner Credentials }
	type hidden struct{ key Key }
	values := map[string]any{
		"the key":                key,
		"a pointer to it":        &key,
		"credentials":            Credentials{User: "kube", Key: key},
		"a pointer to them":      &Credentials{User: "kube", Key: key},
		"a struct in a struct":   nested{Credentials{Key: key}},
		"an unexported field":    hidden{key},
		"a pointer to one":       &hidden{key},
		"a slice":                []Key{key},
		"a map":                  map[string]Key{"key": key},
		"a map of what it opens": map[Key]string{key: "pool"},
		"a field of type any":    struct{ Any any }{key},
		"an error":               fmt.Errorf("connect with %v: %w", key, ErrPermissionDenied),
	}
	for name, value := range values {
		for _, verb := range []string{
			"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%p", "%c", "%U", "%e", "%08.3f", "% x", "%#x", "%-40s", "%+q",
		} {
			checkRedacted(t, name+" with "+verb, fmt.Sprintf(verb, value), key)
		}
		checkRedacted(t, name+" with Sprint", fmt.Sprint(value), key)
		checkRedacted(t, name+" with Sprintln", fmt.Sprintln(value), key)
		if text, err := json.Marshal(value); err == nil {
			checkRedacted(t, name+" in JSON", string(text), key)
		}

		var out bytes.Buffer
		slog.New(slog.NewTextHandler(&out, nil)).Info("Connected", "value", value)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("Connected", "value", value)
		textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(&out))).Info("Connected", "value", value)
		if out.Len() == 0 {
			t.Errorf("%s: nothing was logged", name)
		}
		checkRedacted(t, name+" in a log", out.String(), key)
	}
	if got := key.String(); got != redacted {
		t.Errorf("String returned %q, want %q", got, redacted)
	}
	if got := fmt.Sprintf("%s", Credentials{User: "kube", Key: key}.Key); got != redacted {
		t.Errorf("printing returned %q, want %q", got, redacted)
	}
}

// checkRedacted looks for a key in text, in the forms in which a careless printer may show
// it.
func checkRedacted(t *testing.T, what, text string, key Key) {
	t.Helper()
	for form, secret := range map[string]string{
		"as it is":       key.Reveal(),
		"in hexadecimal": fmt.Sprintf("%x", key.Reveal()),
		"in capitals":    fmt.Sprintf("%X", key.Reveal()),
		"spaced":         fmt.Sprintf("% x", key.Reveal()),
		"as bytes":       strings.Trim(fmt.Sprint([]byte(key.Reveal())), "[]"),
		"as its secret":  aesSecret,
	} {
		if strings.Contains(text, secret) {
			t.Errorf("%s shows the key %s: %s", what, form, text)
		}
	}
}

// sentences has all texts of ParseKey's errors.
const sentences = "malformed key: it is empty; malformed key: it is not base64; malformed key: it is too short; " +
	"malformed key: it is of type none; malformed key: it is cut short or has something behind it; " +
	"malformed key: its length is not that of its type"

// FuzzParseKey checks that ParseKey never panics, and that no error shows the text.
func FuzzParseKey(f *testing.F) {
	for _, seed := range []string{
		"", "\n", "=", "AQ==", "AQBWbRdnAAAAABAA8Qmp2Q1Bjl0yKpoWtmYd9A==", "AQBWbRdnAAAAABAA8Qmp2Q1Bjl0yKpoWtmYd9A==\n",
		cephxKey(0, 16, aesSecret), cephxKey(1, 0, ""), cephxKey(1, 65535, aesSecret), cephxKey(65535, 1, "x"),
		cephxKey(2, 32, aesSecret+aesSecret), cephxKey(2, 16, aesSecret), cephxKey(2, 32, aesSecret), cephxKey(1, 32, aesSecret+aesSecret),
		"key = AQBWbRdnAAAAABAA8Qmp2Q1Bjl0yKpoWtmYd9A==", "\x00\xff", strings.Repeat("A", 1<<16),
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		key, err := ParseKey(text)
		if err == nil {
			if key.Reveal() != text {
				t.Errorf("the key does not hold its text")
			}
			if name := key.Type(); name != "aes" && len(name) != len("aes256k") && !strings.HasPrefix(name, "number ") {
				t.Errorf("the key's type is %q", name)
			}
			if strings.Trim(text, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/=") != "" {
				t.Errorf("librados could not decode this: %q", text)
			}
			return
		}
		if !errors.Is(err, ErrInvalidKey) {
			t.Errorf("got %v, want ErrInvalidKey", err)
		}
		// Every text of a few letters is part of some sentence.
		if len(text) >= 8 && strings.Contains(err.Error(), text) && !strings.Contains(sentences, text) {
			t.Errorf("the error shows the text: %v", err)
		}
	})
}

func TestMonHost(t *testing.T) {
	got := Credentials{Monitors: []string{"10.0.0.1:6789", "v2:[2001:db8::1]:3300"}}.MonHost()
	if want := "10.0.0.1:6789,v2:[2001:db8::1]:3300"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func mustParse(t *testing.T, text string) Key {
	t.Helper()
	key, err := ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	return key
}
