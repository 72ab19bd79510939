// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// pollEvery is short beside what is waited for and long beside what asking
// costs.
const pollEvery = 50 * time.Millisecond

// Eventually calls condition until it returns nil, and returns its last error
// when the timeout or ctx ends first. condition gets a context that ends by
// then.
func Eventually(ctx context.Context, timeout time.Duration, condition func(context.Context) error) error {
	var last error
	start := time.Now()
	err := wait.PollUntilContextTimeout(ctx, pollEvery, timeout, true, func(ctx context.Context) (bool, error) {
		err := condition(ctx)
		// An attempt that the end of the wait cut short says less than the one
		// before it.
		if ctx.Err() == nil || last == nil {
			last = err
		}
		return err == nil, nil
	})
	switch {
	case err == nil:
		return nil
	case last == nil:
		return err
	case ctx.Err() != nil:
		return fmt.Errorf("given up after %s (%w): %w", time.Since(start).Round(time.Millisecond), context.Cause(ctx), last)
	default:
		return fmt.Errorf("not within %s: %w", timeout, last)
	}
}
