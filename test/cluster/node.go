// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// nodeLimit bounds the wait for the node. On an idle machine it is ready within half a
// minute; since it is emulated, any other load slows it down.
const nodeLimit = 5 * time.Minute

// Node is a machine that runs Pods: a qemu guest with a kernel of its own, whose rbd
// driver maps volumes, with kubelet and containerd. Its processor is emulated, so that it
// runs where KVM does not. Its disk is lost with it.
type Node struct {
	// Name is that of the Node object.
	Name string
	// Image is a container image with busybox that the node has. There is no
	// registry: Pods must say imagePullPolicy Never or IfNotPresent.
	Image string
	// Guest is qemu. It ends when kubelet does. Its log is the guest's console;
	// kubelet.log and containerd.log are in the same folder.
	Guest *Daemon
	// Scheduler is kube-scheduler.
	Scheduler *Daemon
}

// kubeletConfig is for a machine without systemd, swap or a firewall, whose disk may be
// full, and which must be quick where tests wait.
const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: false}
  x509: {clientCAFile: /rig/ca.crt}
authorization: {mode: AlwaysAllow}
cgroupDriver: cgroupfs
failSwapOn: false
enforceNodeAllocatable: []
evictionHard:
  imagefs.available: 0%
  memory.available: 0%
  nodefs.available: 0%
  nodefs.inodesFree: 0%
makeIPTablesUtilChains: false
nodeStatusUpdateFrequency: 2s
syncFrequency: 5s
`

func (c *Cluster) startNode(ctx context.Context, programs *nodePrograms, images []string) (*Node, error) {
	n := &Node{Name: "node", Image: "localhost/busybox:rig"}
	dir := filepath.Join(c.Dir, "node")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	initrd, err := c.nodeInitrd(n.Name, dir, programs.guest)
	if err != nil {
		return nil, err
	}
	n.Guest = c.newDaemon("node", []string{"TMPDIR=" + dir}, programs.qemu, guestArgs(
		programs.guest, initrd, filepath.Join(c.Dir, "log"), images)...)
	n.Guest.logs = []string{filepath.Join(c.Dir, "log", "containerd.log"), filepath.Join(c.Dir, "log", "kubelet.log")}
	n.Guest.limit = nodeLimit
	n.Guest.ready = func(ctx context.Context) error { return c.Kube.nodeReady(ctx, n.Name) }
	begin := time.Now()
	// It starts quickly, while the node takes long: they need not start at once.
	if n.Scheduler, err = c.Kube.startScheduler(ctx, programs.scheduler); err != nil {
		return nil, err
	}
	err = n.Guest.Start(ctx)
	if err != nil && ctx.Err() == nil && n.Guest.current() != nil {
		// Seen once: a processor that qemu emulates locked up as the guest booted.
		c.progress("the node does not get ready, starting it once more: " + err.Error())
		n.Guest.Kill()
		err = n.Guest.Start(ctx)
	}
	if err != nil {
		return nil, err
	}
	c.progress(fmt.Sprintf("the node is ready after %.1f s", time.Since(begin).Seconds()))
	return n, nil
}

// nodeInitrd writes the initrd of one run: the guest's, followed by what kubelet needs to
// log in.
func (c *Cluster) nodeInitrd(node, dir, guest string) (string, error) {
	certificate, key, err := c.Kube.authority.issue("system:node:"+node, "system:nodes")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "kubeconfig")
	if err := c.Kube.writeKubeconfig(path, &clientcmdapi.AuthInfo{
		ClientCertificateData: certificate, ClientKeyData: key,
	}, "default"); err != nil {
		return "", err
	}
	kubeconfig, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("make the node's initrd: %w", err)
	}
	initrd, err := os.ReadFile(filepath.Join(guest, "initrd"))
	if err != nil {
		return "", fmt.Errorf("make the node's initrd: %w", err)
	}
	// The kernel recognises an archive only where a header may be.
	for len(initrd)%4 != 0 {
		initrd = append(initrd, 0)
	}
	initrd = append(initrd, cpio(map[string][]byte{
		"rig/ca.crt":       c.Kube.authority.pem,
		"rig/environment":  []byte("API_SERVER=" + strings.TrimPrefix(c.Kube.URL, "https://") + "\n"),
		"rig/kubeconfig":   kubeconfig,
		"rig/kubelet.yaml": []byte(kubeletConfig),
	})...)
	path = filepath.Join(dir, "initrd")
	if err := os.WriteFile(path, initrd, 0o600); err != nil {
		return "", fmt.Errorf("make the node's initrd: %w", err)
	}
	return path, nil
}

// guestArgs returns the arguments of qemu. Each image is a disk of its own, which
// hack/node/init.sh reads as an archive.
func guestArgs(guest, initrd, logs string, images []string) []string {
	args := []string{
		"-accel", "tcg,thread=multi,tb-size=256", "-cpu", "max", "-smp", "2", "-m", "1024",
		"-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-kernel", filepath.Join(guest, "vmlinuz"), "-initrd", initrd,
		"-append", "console=ttyS0 net.ifnames=0 panic=-1 quiet mitigations=off random.trust_cpu=on",
		// One disk serves all rigs: what a guest writes goes into a file without a name
		// in TMPDIR.
		"-drive", "if=virtio,format=raw,snapshot=on,file=" + filepath.Join(guest, "root.ext4"),
		"-netdev", "tap,id=wire,script=no,downscript=no,ifname=" + tapDevice,
		// Without network boot, which needs another package.
		"-device", "virtio-net-pci,netdev=wire,romfile=",
		"-device", "virtio-serial-pci",
	}
	for _, image := range images {
		args = append(args, "-drive", "if=virtio,format=raw,readonly=on,file="+image)
	}
	for _, name := range []string{"containerd", "kubelet"} {
		args = append(args,
			"-chardev", "file,id="+name+",path="+filepath.Join(logs, name+".log"),
			"-device", "virtserialport,chardev="+name+",name="+name)
	}
	return args
}

// nodeReady returns nil when Pods can run on a node.
func (k *Kubernetes) nodeReady(ctx context.Context, name string) error {
	node, err := k.Client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	for _, condition := range node.Status.Conditions {
		if condition.Type != corev1.NodeReady {
			continue
		}
		if condition.Status != corev1.ConditionTrue {
			return fmt.Errorf("node %s is not ready: %s", name, condition.Message)
		}
		// The controller manager removes them once it has seen the condition.
		if len(node.Spec.Taints) > 0 {
			return fmt.Errorf("node %s has the taints %v", name, node.Spec.Taints)
		}
		return nil
	}
	return errors.New("kubelet has not reported its state")
}

// startScheduler runs kube-scheduler as its own user.
func (k *Kubernetes) startScheduler(ctx context.Context, path string) (*Daemon, error) {
	port, err := k.cluster.Port()
	if err != nil {
		return nil, err
	}
	certificate, key, err := k.authority.issue("system:kube-scheduler")
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(k.cluster.Dir, "kubernetes")
	kubeconfig := filepath.Join(dir, "scheduler.kubeconfig")
	if err := k.writeKubeconfig(kubeconfig, &clientcmdapi.AuthInfo{
		ClientCertificateData: certificate, ClientKeyData: key,
	}, "default"); err != nil {
		return nil, err
	}
	return k.cluster.startDaemon(ctx, "kube-scheduler",
		func(ctx context.Context) error {
			return k.healthy(ctx, "https://"+k.cluster.endpoint(port)+"/healthz")
		},
		nil, path,
		"--kubeconfig="+kubeconfig,
		"--leader-elect=false",
		"--bind-address="+k.cluster.Address, fmt.Sprintf("--secure-port=%d", port),
		"--tls-cert-file="+filepath.Join(dir, "tls.crt"), "--tls-private-key-file="+filepath.Join(dir, "tls.key"),
	)
}
