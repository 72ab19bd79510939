// SPDX-License-Identifier: Apache-2.0

// Command sanity runs the tests that the project csi-test has for CSI's Identity and Node
// services. It runs on the node, beside the plugin. It reads a Config from its standard
// input, because a key must not be an argument, and writes a Result for each test to file
// descriptor 3. Both are lines of JSON.
//
// It is a module of its own, because nothing else here needs its dependencies.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/google/uuid"
	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// Config says what to test.
type Config struct {
	// Plugin is the address of the plugin, Controller that of a server that makes volumes
	// for it.
	Plugin, Controller string
	// Folder is where volumes are published and staged.
	Folder string
	// AccessType is "mount" or "block".
	AccessType string
	// SizeBytes is the size of volumes; one is grown to twice that.
	SizeBytes int64
	// Secret is what the plugin gets with the call NodeStageVolume.
	Secret map[string]string
	// Handle is what the handle of a volume begins with.
	Handle string
}

// Result is what came of a test: its state as Ginkgo calls it, and why.
type Result struct{ Name, State, Why string }

// services are the parts of the suite that run, as it calls them.
var services = []string{"Identity Service", "Node Service"}

func main() {
	if err := run(os.Stdin, os.NewFile(3, "results")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer) error {
	var c Config
	if err := json.NewDecoder(in).Decode(&c); err != nil {
		return err
	}
	config := sanity.NewTestConfig()
	config.Address, config.ControllerAddress = c.Plugin, c.Controller
	config.TargetPath, config.StagingPath = c.Folder+"/target", c.Folder+"/staging"
	config.TestVolumeAccessType = c.AccessType
	config.TestVolumeSize, config.TestVolumeExpandSize = c.SizeBytes, 2*c.SizeBytes
	config.IDGen = handles{prefix: c.Handle}
	config.DialOptions = append(config.DialOptions, grpc.WithUnaryInterceptor(withController))
	var err error
	if config.SecretsFile, err = memory(sanity.CSISecrets{NodeStageVolumeSecret: c.Secret}); err != nil {
		return err
	}
	suite := sanity.GinkgoTest(&config)
	defer suite.Finalize()
	var written error
	ginkgo.ReportAfterSuite("results", func(report ginkgo.Report) {
		encoder := json.NewEncoder(out)
		for _, r := range results(report) {
			written = errors.Join(written, encoder.Encode(r))
		}
	})
	gomega.RegisterFailHandler(ginkgo.Fail)
	suiteConfig, reporterConfig := ginkgo.GinkgoConfiguration()
	suiteConfig.FocusStrings = services
	reporterConfig.NoColor, reporterConfig.Verbose = true, true
	ginkgo.RunSpecs(nobody{}, "csi-sanity", suiteConfig, reporterConfig)
	return written
}

// results returns what came of the tests of services. There is one more for a suite that
// did not run to its end.
func results(report ginkgo.Report) []Result {
	var all []Result
	for _, spec := range report.SpecReports {
		if spec.LeafNodeType != types.NodeTypeIt || !slices.Contains(services, spec.ContainerHierarchyTexts[0]) {
			continue
		}
		why := []string{spec.FailureMessage()}
		for _, more := range spec.AdditionalFailures {
			why = append(why, more.Failure.Message)
		}
		all = append(all, Result{spec.FullText(), spec.State.String(), strings.Join(why, "; ")})
	}
	for _, reason := range report.SpecialSuiteFailureReasons {
		all = append(all, Result{"suite", types.SpecStateFailed.String(), reason})
	}
	return all
}

// withController lets the plugin say that it can make volumes: our provisioner does that,
// without CSI, and the suite leaves out all that needs a volume otherwise.
func withController(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	err := invoke(ctx, method, request, reply, conn, options...)
	if r, is := reply.(*csi.GetPluginCapabilitiesResponse); is && err == nil {
		r.Capabilities = append(r.Capabilities, &csi.PluginCapability{Type: &csi.PluginCapability_Service_{
			Service: &csi.PluginCapability_Service{Type: csi.PluginCapability_Service_CONTROLLER_SERVICE},
		}})
	}
	return err
}

// memory writes secrets into a file that is in memory only, and has no name but the one that
// it returns.
func memory(secrets sanity.CSISecrets) (string, error) {
	fd, err := unix.MemfdCreate("secrets", 0)
	if err != nil {
		return "", err
	}
	path := fmt.Sprintf("/proc/self/fd/%d", fd)
	// The suite reads YAML, which JSON is.
	raw, err := json.Marshal(secrets)
	if err != nil {
		return "", err
	}
	return path, os.WriteFile(path, raw, 0o600)
}

// handles makes handles of volumes that do not exist.
type handles struct {
	sanity.DefaultIDGenerator
	prefix string
}

func (h handles) GenerateUniqueValidVolumeID() string { return h.prefix + uuid.NewString() }

// nobody wants to know whether the suite failed: that is in the results.
type nobody struct{}

func (nobody) Fail() {}
