// SPDX-License-Identifier: Apache-2.0

package lease

import (
	"context"
	"time"
)

// Fenced makes a request as an operation of its own, with a deadline: for libraries that make
// theirs without one, even on a replica that no longer leads. The error is that of
// Guard.Begin, or the request's.
func Fenced[T any](ctx context.Context, g *Guard, timeout time.Duration, request func(context.Context) (*T, error)) (*T, error) {
	ctx, end, err := g.Begin(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return request(ctx)
}
