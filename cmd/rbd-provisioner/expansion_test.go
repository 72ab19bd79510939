// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// Without growing, its right is not asked for.
func TestExpansionSwitchedOff(t *testing.T) {
	asked := func(args ...string) bool {
		return slices.ContainsFunc(parse(t, nil, args...).permissions("default"), func(p permission) bool {
			return p.resource == expansionPermission.resource
		})
	}
	if !asked() || asked("-expansion=false") {
		t.Errorf("asked: %v by default, %v with -expansion=false", asked(), asked("-expansion=false"))
	}
}

// The loop waits for its right, however long that is missing, and asks for the
// subresource as such.
func TestExpansionWaitsForItsRight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		begin := time.Now()
		const granted = 10 * time.Minute
		client.PrependReactor("create", "selfsubjectaccessreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
			review := action.(clienttesting.CreateAction).GetObject().(*authorizationv1.SelfSubjectAccessReview)
			of := review.Spec.ResourceAttributes
			review.Status.Allowed = time.Since(begin) >= granted &&
				of.Resource == "persistentvolumeclaims" && of.Subresource == "status" && of.Verb == "patch"
			return true, review, nil
		})
		if err := waitForExpansion(t.Context(), client.AuthorizationV1().SelfSubjectAccessReviews()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took < granted || took > granted+2*expansionRetry {
			t.Errorf("it waited %s for a right that came after %s", took, granted)
		}
	})
}
