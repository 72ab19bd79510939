// SPDX-License-Identifier: Apache-2.0

package node

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/klog/v2"
	"k8s.io/klog/v2/textlogger"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"ceph.com/rbd-provisioner/provisioner/rbd"
	"ceph.com/rbd-provisioner/provisioner/volume"
)

// buffer is a log that several goroutines write to.
type buffer struct {
	mu   sync.Mutex // guards text
	text bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// running is a plugin on its sockets.
type running struct {
	*Plugin
	log          *buffer
	csi          csi.NodeClient
	identity     csi.IdentityClient
	registration registerapi.RegistrationClient
	stop         func()
}

// run starts the world's plugin as kubelet meets it.
func (w *world) run(sockets Sockets) *running {
	w.Helper()
	r := &running{Plugin: NewPlugin(w.server, sockets), log: &buffer{}}
	logger := textlogger.NewLogger(textlogger.NewConfig(textlogger.Output(r.log), textlogger.Verbosity(10)))
	ctx, cancel := context.WithCancel(klog.NewContext(w.Context(), logger))
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	dial := func(path string) *grpc.ClientConn {
		connection, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
		w.must(err)
		w.Cleanup(func() { _ = connection.Close() })
		return connection
	}
	calls := dial(sockets.CSI)
	r.csi, r.identity = csi.NewNodeClient(calls), csi.NewIdentityClient(calls)
	r.registration = registerapi.NewRegistrationClient(dial(filepath.Join(sockets.RegistrationDir, "rbd.ceph.com-reg.sock")))
	var once sync.Once
	r.stop = func() {
		once.Do(func() {
			cancel()
			w.must(<-ended)
		})
	}
	w.Cleanup(r.stop)
	return r
}

func (w *world) sockets() Sockets {
	dir := w.TempDir()
	return Sockets{CSI: filepath.Join(dir, "csi.sock"), KubeletCSI: "/kubelet/csi.sock", RegistrationDir: dir}
}

// kubelet finds the plugin, asks who it is, and says whether it took it.
func TestRegistration(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	w := newWorld(t)
	r := w.run(w.sockets())
	info, err := r.registration.GetInfo(ctx, &registerapi.InfoRequest{})
	w.must(err)
	if info.GetType() != "CSIPlugin" || info.GetName() != "rbd.ceph.com" || info.GetEndpoint() != "/kubelet/csi.sock" || len(info.GetSupportedVersions()) != 1 {
		t.Errorf("got %v", info)
	}
	if err := r.Ready(); err == nil {
		t.Error("ready before kubelet knows it")
	}
	_, err = r.registration.NotifyRegistrationStatus(ctx, &registerapi.RegistrationStatus{Error: "no such socket"})
	w.must(err)
	if err := r.Ready(); err == nil || !strings.Contains(err.Error(), "no such socket") {
		t.Errorf("got %v", err)
	}
	_, err = r.registration.NotifyRegistrationStatus(ctx, &registerapi.RegistrationStatus{PluginRegistered: true})
	w.must(err)
	w.must(r.Ready())
}

// A plugin that was killed leaves its sockets; one that is being replaced leaves those of
// its successor alone.
func TestSocketsOfOthers(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	w := newWorld(t)
	sockets := w.sockets()
	registration := filepath.Join(sockets.RegistrationDir, "rbd.ceph.com-reg.sock")
	for _, path := range []string{sockets.CSI, registration} {
		l, err := net.Listen("unix", path)
		w.must(err)
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		w.must(l.Close())
	}
	first := w.run(sockets)
	_, err := first.registration.GetInfo(ctx, &registerapi.InfoRequest{})
	w.must(err)
	second := w.run(sockets)
	if err := wait.PollUntilContextCancel(ctx, time.Millisecond, true, func(context.Context) (bool, error) {
		return strings.Contains(second.log.String(), "Serving kubelet"), nil
	}); err != nil {
		t.Fatal("the second plugin does not serve")
	}
	first.stop()
	if _, err := os.Lstat(registration); err != nil {
		t.Errorf("the first plugin removed the second one's socket: %v", err)
	}
	_, err = second.identity.Probe(ctx, &csi.ProbeRequest{})
	w.must(err)
	second.stop()
	if _, err := os.Lstat(registration); err == nil {
		t.Error("kubelet takes the plugin for alive after an orderly stop")
	}

	w.must(os.WriteFile(registration, nil, 0o600))
	if err := NewPlugin(w.server, sockets).Run(ctx); err == nil || !strings.Contains(err.Error(), "something else than a socket") {
		t.Errorf("got %v", err)
	}
}

func TestIdentity(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	w := newWorld(t)
	r := w.run(w.sockets())
	info, err := r.identity.GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
	w.must(err)
	if info.GetName() != volume.CSIDriver || info.GetVendorVersion() != "test" {
		t.Errorf("got %v", info)
	}
	probe, err := r.identity.Probe(ctx, &csi.ProbeRequest{})
	w.must(err)
	if !probe.GetReady().GetValue() {
		t.Error("not ready")
	}
	node, err := r.csi.NodeGetInfo(ctx, &csi.NodeGetInfoRequest{})
	w.must(err)
	if node.GetNodeId() != "node-1" {
		t.Errorf("got %v", node)
	}
	capabilities, err := r.csi.NodeGetCapabilities(ctx, &csi.NodeGetCapabilitiesRequest{})
	w.must(err)
	var got []int32
	for _, c := range capabilities.GetCapabilities() {
		got = append(got, int32(c.GetRpc().GetType()))
	}
	if len(got) != 6 || got[5] != 4 { // what kubelet calls VOLUME_CONDITION
		t.Errorf("got %v", got)
	}
}

// A life as kubelet sees it. The log has each call, at any level, and never the key.
func TestCalls(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	w := newWorld(t)
	counted := map[string]codes.Code{}
	w.server.cfg.Observe = func(method string, code codes.Code, _ time.Duration) { counted[method] = code }
	r := w.run(w.sockets())
	request := w.stageRequest()
	_, err := r.csi.NodeStageVolume(ctx, request)
	w.must(err)
	_, err = r.csi.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{VolumeId: w.handle, StagingTargetPath: w.staging, TargetPath: w.target, VolumeCapability: w.capability})
	w.must(err)
	_, err = r.csi.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: w.handle, StagingTargetPath: w.staging})
	w.refused(err, codes.FailedPrecondition, w.target)
	_, err = r.csi.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: w.handle, TargetPath: w.target})
	w.must(err)
	request.Secrets["key"] = "half-of-" + w.creds.Key.Reveal()
	_, err = r.csi.NodeStageVolume(ctx, request)
	w.refused(err, codes.Unavailable, "malformed key", "still mapped")
	r.stop()
	for method, want := range map[string]codes.Code{
		"NodeStageVolume": codes.Unavailable, "NodePublishVolume": codes.OK, "NodeUnstageVolume": codes.FailedPrecondition, "NodeUnpublishVolume": codes.OK,
	} {
		if got, found := counted[method]; !found || got != want {
			t.Errorf("%s was counted as %s, want %s", method, got, want)
		}
	}
	log := r.log.String()
	for _, want := range []string{`method="NodeStageVolume"`, w.handle, w.target, "Refused", "Done", "Mapped"} {
		if !strings.Contains(log, want) {
			t.Errorf("the log does not say %q:\n%s", want, log)
		}
	}
	if key := w.creds.Key.Reveal(); strings.Contains(log, key[:len(key)-4]) {
		t.Error("the log has the key")
	}
}

func TestNewSaysWhatIsMissing(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*Config){
		"node": func(c *Config) { c.NodeID = "" }, "long": func(c *Config) { c.NodeID = strings.Repeat("n", 257) },
		"kernel": func(c *Config) { c.Kernel = nil }, "negative": func(c *Config) { c.Deadline = -1 },
	} {
		cfg := w.server.cfg
		change(&cfg)
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: want an error", name)
		}
	}
}

// Whatever a volume says, it is refused or taken as it was meant: as what the driver and
// the device's handle can be.
func FuzzAttributes(f *testing.F) {
	f.Add("fsid/rbd/img", "rbd", "img", "kube", "10.0.0.1:6789", "", "a2V5")
	f.Add("fsid/rbd/img", "rbd", "img", "kube,secret=x", "ceph.example.com", "ms_mode=secure", "")
	f.Add("fsid/a b/c\n", "a b", "c\n", "u\x00", "v2:[::1]:3300;10.0.0.1", "queue_depth=1,notrim", "\n")
	f.Add("", "", "", "", "", "", "")
	f.Add("x/y/z/w", "y", "z/w", "u", "1.2.3.4", "alloc_size=4096", "x")
	f.Fuzz(func(t *testing.T, handle, pool, image, user, monitors, options, key string) {
		v, err := parseStage(&csi.NodeStageVolumeRequest{
			VolumeId: handle, StagingTargetPath: "/staging", VolumeCapability: fileSystem("", writer), Secrets: map[string]string{"key": key},
			VolumeContext: map[string]string{
				volume.AttrPool: pool, volume.AttrImage: image, volume.AttrUser: user, volume.AttrMonitors: monitors, volume.AttrMapOptions: options,
			},
		})
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\r") || len(key) > 8 && strings.Contains(err.Error(), key) && !strings.Contains(handle+pool+image+user+monitors+options, key) {
				t.Errorf("got %q", err)
			}
			return
		}
		if strings.ContainsAny(v.pool+v.image+v.user, " \t\n\r\x00") || strings.Contains(v.user, ",") {
			t.Errorf("got %+v", v)
		}
		if volume.CSIHandle(v.fsid, v.pool, v.image) != handle || len(v.monitors) == 0 || v.key.Equal(rbd.Key{}) {
			t.Errorf("got %+v", v)
		}
	})
}
