// SPDX-License-Identifier: Apache-2.0

// Package manifests checks the manifests that people copy: that the API would accept
// every field, and that the files match each other. It needs no server; "make
// deploy-check" applies them to one.
package manifests

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
)

// root is the root folder of the repository.
const root = "../.."

// installDirs hold the parts of an installation, without the node plugin.
var installDirs = []string{"rbac", "deploy"}

// nodeDir has the node plugin.
const nodeDir = "deploy/node"

// object is one YAML document.
type object struct {
	// file is relative to the root folder, with slashes.
	file string
	meta metav1.Object
	obj  runtime.Object
}

// load decodes all documents of some folders. A field that the API does not know, or that
// is there twice, is an error.
func load(t *testing.T, dirs ...string) []object {
	t.Helper()
	decoder := serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer()
	var all []object
	for _, file := range yamlFiles(t, dirs...) {
		data, err := os.ReadFile(filepath.Join(root, file))
		if err != nil {
			t.Fatal(err)
		}
		documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(data)))
		for {
			document, err := documents.Read()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			obj, _, err := decoder.Decode(document, nil, nil)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			meta, ok := obj.(metav1.Object)
			if !ok {
				t.Fatalf("%s: %T is no object with a name", file, obj)
			}
			all = append(all, object{file: file, meta: meta, obj: obj})
		}
	}
	return all
}

// yamlFiles returns the files that "kubectl apply -f DIR" would apply. It fails if there
// are others, which kubectl would pass over in silence.
func yamlFiles(t *testing.T, dirs ...string) []string {
	t.Helper()
	var files []string
	for _, dir := range dirs {
		entries, err := os.ReadDir(filepath.Join(root, dir))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.IsDir() { // kubectl passes over it, too
				continue
			}
			if filepath.Ext(e.Name()) != ".yaml" {
				t.Errorf("%s/%s is no .yaml file", dir, e.Name())
				continue
			}
			files = append(files, dir+"/"+e.Name())
		}
	}
	return files
}

// all returns the objects of one type.
func all[T runtime.Object](objects []object) []T {
	var found []T
	for _, o := range objects {
		if typed, ok := o.obj.(T); ok {
			found = append(found, typed)
		}
	}
	return found
}

// one returns the only object of its type.
func one[T runtime.Object](t *testing.T, objects []object) T {
	t.Helper()
	found := all[T](objects)
	if len(found) != 1 {
		t.Fatalf("got %d objects of %T, want 1", len(found), *new(T))
	}
	return found[0]
}

// find returns the object of a type with that name and namespace.
func find[T interface {
	runtime.Object
	metav1.Object
}](objects []object, namespace, name string) (T, bool) {
	for _, o := range all[T](objects) {
		if o.GetNamespace() == namespace && o.GetName() == name {
			return o, true
		}
	}
	return *new(T), false
}

// deref returns the value of a pointer of the API, or the meaning of nil.
func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
