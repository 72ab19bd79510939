// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Kubernetes is a control plane without nodes: etcd, kube-apiserver with RBAC,
// kube-controller-manager with its default controllers, each of which has the
// rights of its own service account. A scheduler and a kubelet come with a Node.
type Kubernetes struct {
	// Kubeconfig is the path of a kubeconfig with the rights of a cluster admin.
	Kubeconfig string
	// KubectlPath is the kubectl of the same version.
	KubectlPath string
	// URL is the API server's address.
	URL string
	// Version is what the API server says it is, as "v1.30.14".
	Version string
	// Client is a cluster admin, without a limit of requests per second.
	Client kubernetes.Interface

	Etcd, APIServer, ControllerManager *Daemon

	cluster   *Cluster
	authority *authority
	config    *rest.Config
	http      *http.Client
}

func (c *Cluster) startKubernetes(ctx context.Context, cfg Config, programs *programs) (*Kubernetes, error) {
	begin := time.Now()
	dir := filepath.Join(c.Dir, "kubernetes")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	var ports [4]int
	for i := range ports {
		var err error
		if ports[i], err = c.Port(); err != nil {
			return nil, err
		}
	}
	etcdPort, peerPort, securePort, managerPort := ports[0], ports[1], ports[2], ports[3]

	authority, err := newAuthority()
	if err != nil {
		return nil, err
	}
	k := &Kubernetes{
		Kubeconfig:  filepath.Join(c.Dir, "kubeconfig"),
		KubectlPath: programs.kubectl,
		URL:         "https://" + c.endpoint(securePort),
		cluster:     c,
		authority:   authority,
	}
	if err := k.prepare(dir); err != nil {
		return nil, err
	}
	if err := k.startEtcd(ctx, programs.etcd, dir, etcdPort, peerPort); err != nil {
		return nil, err
	}
	if err := k.startAPIServer(ctx, programs.apiserver, dir, etcdPort, securePort); err != nil {
		return nil, err
	}
	version, err := k.Client.Discovery().ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("ask the API server for its version: %w", err)
	}
	k.Version = version.GitVersion
	if err := k.startControllerManager(ctx, programs.controllerManager, dir, managerPort, cmp.Or(cfg.ControllerQPS, 200)); err != nil {
		return nil, err
	}
	c.progress(fmt.Sprintf("Kubernetes %s is ready after %.1f s", k.Version, time.Since(begin).Seconds()))
	return k, nil
}

// prepare writes certificates and kubeconfigs and makes the clients.
func (k *Kubernetes) prepare(dir string) error {
	if err := k.authority.writeCertificates(func(name string) string { return filepath.Join(dir, name) }); err != nil {
		return err
	}
	for _, login := range []struct {
		path, user string
		groups     []string
	}{
		{k.Kubeconfig, "rig-admin", []string{"system:masters"}},
		{filepath.Join(dir, "controller-manager.kubeconfig"), "system:kube-controller-manager", nil},
	} {
		certificate, key, err := k.authority.issue(login.user, login.groups...)
		if err != nil {
			return err
		}
		if err := k.writeKubeconfig(login.path, &clientcmdapi.AuthInfo{
			ClientCertificateData: certificate, ClientKeyData: key,
		}, "default"); err != nil {
			return err
		}
	}
	var err error
	if k.config, err = clientcmd.BuildConfigFromFlags("", k.Kubeconfig); err != nil {
		return fmt.Errorf("read %s: %w", k.Kubeconfig, err)
	}
	k.config.QPS = -1 // no limit
	// No proxy either: the environment may name one, and none leads here.
	k.config.Proxy = http.ProxyURL(nil)
	if k.Client, err = kubernetes.NewForConfig(k.config); err != nil {
		return fmt.Errorf("make client: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(k.authority.certificate)
	k.http = &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}},
	}
	return nil
}

func (k *Kubernetes) writeKubeconfig(path string, user *clientcmdapi.AuthInfo, namespace string) error {
	config := clientcmdapi.NewConfig()
	config.Clusters["rig"] = &clientcmdapi.Cluster{Server: k.URL, CertificateAuthorityData: k.authority.pem}
	config.AuthInfos["user"] = user
	config.Contexts["rig"] = &clientcmdapi.Context{Cluster: "rig", AuthInfo: "user", Namespace: namespace}
	config.CurrentContext = "rig"
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}

func (k *Kubernetes) startEtcd(ctx context.Context, path, dir string, port, peerPort int) error {
	url, peer := "http://"+k.cluster.endpoint(port), "http://"+k.cluster.endpoint(peerPort)
	var err error
	k.Etcd, err = k.cluster.startDaemon(ctx, "etcd",
		func(ctx context.Context) error { return k.healthy(ctx, url+"/health") },
		// Without this, Debian's etcd accepts only amd64.
		[]string{"ETCD_UNSUPPORTED_ARCH=" + runtime.GOARCH}, path,
		"--name=rig",
		"--data-dir="+filepath.Join(dir, "etcd"),
		"--listen-client-urls="+url, "--advertise-client-urls="+url,
		"--listen-peer-urls="+peer, "--initial-advertise-peer-urls="+peer, "--initial-cluster=rig="+peer,
		// The folder is removed with the rig, so there is nothing to protect from a power
		// cut.
		"--unsafe-no-fsync",
		// The only member elects itself after this time (default 1 s).
		"--heartbeat-interval=50", "--election-timeout=250",
	)
	return err
}

func (k *Kubernetes) startAPIServer(ctx context.Context, path, dir string, etcdPort, port int) error {
	in := func(name string) string { return filepath.Join(dir, name) }
	var err error
	k.APIServer, err = k.cluster.startDaemon(ctx, "kube-apiserver",
		func(ctx context.Context) error {
			if err := k.Client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error(); err != nil {
				return err
			}
			_, err := k.Client.CoreV1().Namespaces().Get(ctx, metav1.NamespaceSystem, metav1.GetOptions{})
			return err
		},
		nil, path,
		"--etcd-servers=http://"+k.cluster.endpoint(etcdPort),
		"--bind-address="+k.cluster.Address, fmt.Sprintf("--secure-port=%d", port),
		// The service "kubernetes" would refuse a loopback address.
		"--advertise-address="+k.cluster.Address, "--endpoint-reconciler-type=none",
		"--tls-cert-file="+in("tls.crt"), "--tls-private-key-file="+in("tls.key"),
		"--client-ca-file="+in("ca.crt"),
		// What a kubelet may do depends on the Pods of its node.
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		// For the logs of Pods, and for running commands in them.
		"--kubelet-client-certificate="+in("tls.crt"), "--kubelet-client-key="+in("tls.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file="+in("service-account.key"),
		"--service-account-signing-key-file="+in("service-account.key"),
		"--service-cluster-ip-range=10.0.0.0/24",
		// For deploy/node/, which is applied where there is no node, too.
		"--allow-privileged=true",
	)
	if err != nil {
		return err
	}
	// On SIGTERM it would wait a minute for its clients to end their watches. All its
	// state is in etcd.
	k.APIServer.end = syscall.SIGKILL
	return nil
}

func (k *Kubernetes) startControllerManager(ctx context.Context, path, dir string, port, qps int) error {
	in := func(name string) string { return filepath.Join(dir, name) }
	var err error
	k.ControllerManager, err = k.cluster.startDaemon(ctx, "kube-controller-manager",
		func(ctx context.Context) error {
			if err := k.healthy(ctx, "https://"+k.cluster.endpoint(port)+"/healthz"); err != nil {
				return err
			}
			// One of the controllers writes it, so they run.
			for _, namespace := range []string{metav1.NamespaceDefault, metav1.NamespaceSystem} {
				if _, err := k.Client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{}); err != nil {
					return err
				}
			}
			return nil
		},
		nil, path,
		"--kubeconfig="+in("controller-manager.kubeconfig"),
		"--use-service-account-credentials",
		"--service-account-private-key-file="+in("service-account.key"),
		"--root-ca-file="+in("ca.crt"),
		"--leader-elect=false",
		"--bind-address="+k.cluster.Address, fmt.Sprintf("--secure-port=%d", port),
		"--tls-cert-file="+in("tls.crt"), "--tls-private-key-file="+in("tls.key"),
		fmt.Sprintf("--kube-api-qps=%d", qps), fmt.Sprintf("--kube-api-burst=%d", 2*qps),
	)
	return err
}

// healthy returns nil when a GET of url answers with 200.
func (k *Kubernetes) healthy(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := k.http.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }() // only read
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s: %s", url, response.Status, body)
	}
	return nil
}

// RESTConfig returns a copy of the configuration of Client: a cluster admin, without a
// limit of requests per second.
func (k *Kubernetes) RESTConfig() *rest.Config { return rest.CopyConfig(k.config) }

// Kubectl runs kubectl as cluster admin and returns its standard output; its
// error holds what it wrote to standard error.
func (k *Kubernetes) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	return k.KubectlAs(ctx, k.Kubeconfig, stdin, args...)
}

// KubectlAs is Kubectl with another kubeconfig.
func (k *Kubernetes) KubectlAs(ctx context.Context, kubeconfig, stdin string, args ...string) (string, error) {
	return k.cluster.folder.run(ctx, strings.NewReader(stdin), []string{"KUBECONFIG=" + kubeconfig}, k.KubectlPath, args...)
}

// ServiceAccountKubeconfig logs in as a service account, which must exist, and returns
// the path of a kubeconfig that has nothing but the account's token. RBAC decides what
// the account may do.
func (k *Kubernetes) ServiceAccountKubeconfig(ctx context.Context, namespace, name string) (string, error) {
	seconds := int64(validFor.Seconds())
	token, err := k.Client.CoreV1().ServiceAccounts(namespace).CreateToken(ctx, name, &authenticationv1.TokenRequest{
		Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &seconds},
	}, metav1.CreateOptions{})
	if err != nil {
		return "", fmt.Errorf("log in as service account %s/%s: %w", namespace, name, err)
	}
	f, err := os.CreateTemp(k.cluster.Dir, name+"-*.kubeconfig")
	if err != nil {
		return "", fmt.Errorf("log in as service account %s/%s: %w", namespace, name, err)
	}
	return f.Name(), errors.Join(f.Close(), k.writeKubeconfig(f.Name(), &clientcmdapi.AuthInfo{Token: token.Status.Token}, namespace))
}
