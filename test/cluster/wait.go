// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"
)

// polling asks often at first, and once a second after some ten seconds: asking costs the
// servers time, too.
var polling = wait.Backoff{Duration: 50 * time.Millisecond, Factor: 1.1, Cap: time.Second, Steps: 100}

// Eventually calls condition until it returns nil. If the timeout or ctx ends first, it
// returns the last error. condition gets a context that ends by then.
func Eventually(ctx context.Context, timeout time.Duration, condition func(context.Context) error) error {
	var last error
	start := time.Now()
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	err := polling.DelayFunc().Until(limited, true, false, func(ctx context.Context) (bool, error) {
		err := condition(ctx)
		// An attempt that was cut short at the end says less than the one before it.
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
