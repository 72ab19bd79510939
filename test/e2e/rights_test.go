// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

// right is one verb on one resource, with one name or any.
type right struct {
	group, resource, verb, name string
	// own says that it is for the provisioner's namespace only, not for everywhere.
	own bool
}

// String writes it like docs/security.md, without the place.
func (r right) String() string {
	text := r.verb + " " + r.resource
	if r.group != "" {
		text += "." + r.group
	}
	if r.name != "" {
		text += fmt.Sprintf(" %q", r.name)
	}
	return text
}

// rights splits rules into single rights.
func rights(own bool, rules []rbacv1.PolicyRule) []right {
	var all []right
	for _, rule := range rules {
		names := rule.ResourceNames
		if len(names) == 0 {
			names = []string{""}
		}
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, name := range names {
					for _, verb := range rule.Verbs {
						all = append(all, right{group, resource, verb, name, own})
					}
				}
			}
		}
	}
	return all
}

// rule is the rule that grants r alone.
func (r right) rule() rbacv1.PolicyRule {
	rule := rbacv1.PolicyRule{APIGroups: []string{r.group}, Resources: []string{r.resource}, Verbs: []string{r.verb}}
	if r.name != "" {
		rule.ResourceNames = []string{r.name}
	}
	return rule
}

// installed returns the rights of rbac/.
func installed(t *testing.T) []right {
	t.Helper()
	var everywhere, resize rbacv1.ClusterRole
	var own rbacv1.Role
	for file, role := range map[string]any{
		"clusterrole.yaml": &everywhere, "resize-clusterrole.yaml": &resize, "role.yaml": &own,
	} {
		text, err := os.ReadFile(checkout("rbac", file))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.UnmarshalStrict(text, role); err != nil {
			t.Fatal(err)
		}
	}
	return slices.Concat(rights(false, everywhere.Rules), rights(false, resize.Rules), rights(true, own.Rules))
}

// documentedRight matches a row of the table in docs/security.md that has something in
// each of its columns.
var documentedRight = regexp.MustCompile("(?m)^\\| `([^`]+)` \\| (own|everywhere) \\| [^|]+ \\| [^|]+ \\|$")

// What the account may do, according to the API server, is what the documentation lists,
// in its own namespace and in others.
func TestRightsAreDocumented(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile(checkout("docs", "security.md"))
	if err != nil {
		t.Fatal(err)
	}
	documented := map[string][]string{} // by place
	for _, row := range documentedRight.FindAllStringSubmatch(string(page), -1) {
		documented[row[2]] = append(documented[row[2]], row[1])
	}
	for ns, want := range map[string][]string{
		namespace:         slices.Concat(documented["everywhere"], documented["own"]),
		"kube-node-lease": documented["everywhere"],
	} {
		// Some rights come with every login: those of an account without roles.
		everybody := allowed(t, "kube-public", "default", ns)
		granted := allowed(t, namespace, account, ns)
		maps.DeleteFunc(granted, func(r string, _ bool) bool { return everybody[r] })
		slices.Sort(want)
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(granted))); diff != "" {
			t.Errorf("rights in %s (-docs/security.md +API server):\n%s", ns, diff)
		}
	}
}

// allowed asks the API server what an account may do in a namespace.
func allowed(t *testing.T, accountNamespace, name, ns string) map[string]bool {
	t.Helper()
	path, err := rig.Kube.ServiceAccountKubeconfig(t.Context(), accountNamespace, name)
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	review, err := client.AuthorizationV1().SelfSubjectRulesReviews().Create(t.Context(), &authorizationv1.SelfSubjectRulesReview{
		Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: ns},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if review.Status.Incomplete && review.Status.EvaluationError != "" {
		t.Logf("what %s may do is not all known: %s", name, review.Status.EvaluationError)
	}
	all := map[string]bool{}
	for _, r := range review.Status.ResourceRules {
		for _, right := range rights(false, []rbacv1.PolicyRule{{
			APIGroups: r.APIGroups, Resources: r.Resources, ResourceNames: r.ResourceNames, Verbs: r.Verbs,
		}}) {
			all[right.String()] = true
		}
	}
	for _, r := range review.Status.NonResourceRules {
		for _, url := range r.NonResourceURLs {
			for _, verb := range r.Verbs {
				all[verb+" "+url] = true
			}
		}
	}
	return all
}

// grant gives an account these rights, replaces those that it has, and waits until the
// API server knows. all are the rights to ask about.
func (f *fixture) grant(ns string, granted, all []right) {
	f.Helper()
	ctx := f.Context()
	meta := metav1.ObjectMeta{Name: ns}
	clusterRole := &rbacv1.ClusterRole{ObjectMeta: meta}
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: account, Namespace: ns}}
	for _, r := range granted {
		if r.own {
			role.Rules = append(role.Rules, r.rule())
		} else {
			clusterRole.Rules = append(clusterRole.Rules, r.rule())
		}
	}
	rbac := rig.Kube.Client.RbacV1()
	if _, err := rbac.ClusterRoles().Get(ctx, ns, metav1.GetOptions{}); err == nil {
		_, err = rbac.ClusterRoles().Update(ctx, clusterRole, metav1.UpdateOptions{})
		f.must(err)
		_, err = rbac.Roles(ns).Update(ctx, role, metav1.UpdateOptions{})
		f.must(err)
	} else {
		subjects := []rbacv1.Subject{{Kind: rbacv1.ServiceAccountKind, Namespace: ns, Name: account}}
		_, err = rbac.ClusterRoles().Create(ctx, clusterRole, metav1.CreateOptions{})
		f.must(err)
		_, err = rbac.Roles(ns).Create(ctx, role, metav1.CreateOptions{})
		f.must(err)
		_, err = rbac.ClusterRoleBindings().Create(ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: meta, Subjects: subjects,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: ns},
		}, metav1.CreateOptions{})
		f.must(err)
		_, err = rbac.RoleBindings(ns).Create(ctx, &rbacv1.RoleBinding{
			ObjectMeta: role.ObjectMeta, Subjects: subjects,
			RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: account},
		}, metav1.CreateOptions{})
		f.must(err)
	}
	f.eventually(func(ctx context.Context) error {
		for _, r := range all {
			resource, subresource, _ := strings.Cut(r.resource, "/")
			review, err := rig.Kube.Client.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
				Spec: authorizationv1.SubjectAccessReviewSpec{
					User: "system:serviceaccount:" + ns + ":" + account,
					ResourceAttributes: &authorizationv1.ResourceAttributes{
						Group: r.group, Resource: resource, Subresource: subresource, Verb: r.verb, Name: r.name,
						Namespace: map[bool]string{true: ns}[r.own],
					},
				},
			}, metav1.CreateOptions{})
			if err != nil {
				return err
			}
			if want := slices.Contains(granted, r); review.Status.Allowed != want {
				return fmt.Errorf("%s is allowed to %s: %v, want %v", ns, r, review.Status.Allowed, want)
			}
		}
		return nil
	})
}
