// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"ceph.com/rbd-provisioner/test/cluster"
)

// useKey records a key, to search for at the end.
func useKey(key string) {
	rig.mu.Lock()
	defer rig.mu.Unlock()
	rig.keys = append(rig.keys, key)
}

// look records what a provisioner shows while it runs: its metrics, arguments and
// environment.
func look(ctx context.Context, p *cluster.Provisioner) error {
	seen := map[string]string{}
	metrics, err := get(ctx, p.URL+"/metrics")
	if err != nil {
		return err
	}
	seen["the metrics of "+p.Name] = metrics
	for _, file := range []string{"cmdline", "environ"} {
		path := fmt.Sprintf("/proc/%d/%s", p.PID(), file)
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if len(text) == 0 {
			return fmt.Errorf("%s of %s is empty", path, p.Name)
		}
		seen["the "+file+" of "+p.Name] = string(text)
	}
	rig.mu.Lock()
	defer rig.mu.Unlock()
	if rig.seen == nil {
		rig.seen = map[string]string{}
	}
	for where, text := range seen {
		rig.seen[where] += text
	}
	return nil
}

// noKeyAnywhere searches all that the provisioners left for each key that was used:
// objects that others than the owner of a Secret may read, files, logs, and what look
// recorded.
func noKeyAnywhere(ctx context.Context) error {
	found := map[string]string{}
	const kinds = "events,persistentvolumes,persistentvolumeclaims,storageclasses,leases,configmaps"
	objects, err := rig.Kube.Kubectl(ctx, "", "get", kinds, "-A", "-o", "yaml")
	if err != nil {
		return err
	}
	found["the "+kinds] = objects
	if err := files(found); err != nil {
		return err
	}
	rig.mu.Lock()
	keys := slices.Compact(slices.Sorted(slices.Values(rig.keys)))
	for where, text := range rig.seen {
		found[where] = text
	}
	rig.mu.Unlock()
	var errs []error
	for where, text := range found {
		dumped, lower := dumpedBytes(text), strings.ToLower(text)
		for _, key := range keys {
			for _, form := range formsOf(key) {
				if before, _, found := strings.Cut(text, form.text); found {
					errs = append(errs, fmt.Errorf("a key, %s, stands in %s, behind %q", form.name, where, before[max(0, len(before)-200):]))
				} else if form.anyCase && strings.Contains(lower, form.text) {
					errs = append(errs, fmt.Errorf("a key, %s, stands in %s", form.name, where))
				}
				if strings.Contains(dumped, form.text) {
					errs = append(errs, fmt.Errorf("a key, %s, is dumped in %s", form.name, where))
				}
			}
		}
	}
	return errors.Join(errs...)
}

// files reads those files in the rig's folder that a provisioner has written or could
// have: the folder is its HOME, its TMPDIR and its working directory. It leaves out those
// of servers, which have their own keys and Secrets.
func files(found map[string]string) error {
	servers := map[string]bool{"ceph": true, "kubernetes": true}
	logs := 0
	err := filepath.WalkDir(rig.Dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(rig.Dir, path)
		switch {
		case err != nil:
			return err
		case servers[name]:
			return fs.SkipDir
		case !entry.Type().IsRegular():
			return nil
		case filepath.Dir(name) == "log":
			// The others belong to servers.
			if !strings.HasPrefix(entry.Name(), "provisioner-") {
				return nil
			}
			logs++
		}
		text, err := os.ReadFile(path)
		found[name] = string(text)
		return err
	})
	if err == nil && logs == 0 {
		err = errors.New("found no logs of provisioners")
	}
	return err
}

// form is one way to write a key.
type form struct {
	name, text string
	// anyCase is for digits that may be capital letters, too.
	anyCase bool
}

// formsOf returns the key as Ceph prints it, as a dump of its Secret has it, and as
// bytes.
func formsOf(key string) []form {
	// The last group depends on what follows the key in the Secret.
	inSecret := base64.StdEncoding.EncodeToString([]byte(key[:len(key)/3*3]))
	raw, err := base64.StdEncoding.DecodeString(key)
	if err != nil {
		panic(err) // Ceph made it
	}
	// The bytes before are the type, the time and the length.
	secret := raw[12:]
	return []form{
		{name: "as it is", text: key},
		{name: "as base64", text: inSecret},
		{name: "as hexadecimal bytes", text: hex.EncodeToString(secret), anyCase: true},
		{name: "as bytes", text: string(secret)},
	}
}

// dumpedBytes joins what a log has as dumps of bytes, 16 in a line, which is how
// client-go logs the bodies of answers.
func dumpedBytes(text string) string {
	var all strings.Builder
	for _, line := range dumpLine.FindAllStringSubmatch(text, -1) {
		all.WriteString(line[1])
	}
	return all.String()
}

// dumpLine is the end of a line of hex.Dump.
var dumpLine = regexp.MustCompile(`(?m)\|(.{1,16})\|$`)
