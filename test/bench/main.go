// SPDX-License-Identifier: Apache-2.0

// Command bench measures the provisioner beside two others: the ceiling, which is the
// same library without any storage, and the baseline, which works like the retired
// provisioner. All three are processes of their own on one rig, one at a time, in turns,
// so that all figures come from the same conditions.
//
// "make bench" runs it. docs/performance.md says what each row of its table means. If a
// measurement fails, the command ends with an error: no figure is left out silently.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"ceph.com/rbd-provisioner/test/cluster"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	o, err := parseOptions(os.Args[1:])
	if err == nil {
		err = run(ctx, o, os.Stdout)
	}
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options say how much is measured.
type options struct {
	// Root is the root folder of the repository.
	Root string `json:"-"`
	// Out is the folder for report.json, table.txt, table.md and performance.svg.
	Out string `json:"-"`
	// Docs puts table and plot into docs/, too.
	Docs bool `json:"-"`

	Contenders []string `json:"contenders"`
	Rounds     int      `json:"rounds"`
	// Bursts are numbers of claims made at once, in rising order.
	Bursts []int `json:"bursts"`
	// BaselineBurst stands for all of them but 1 in the baseline, whose rate does not
	// depend on the number.
	BaselineBurst int `json:"baselineBurst"`
	// Singles is the number of single claims per round, BaselineSingles that of
	// the baseline, which has to wait for its request limit before each.
	Singles         int `json:"singles"`
	BaselineSingles int `json:"baselineSingles"`
	// Volumes is how many volumes the populated cluster has.
	Volumes int `json:"volumes"`
	// Sizes is the number of volumes of each size that are deleted.
	Sizes int    `json:"sizes"`
	Large string `json:"large"`
	// Idle is how long the idle provisioner is watched.
	Idle time.Duration `json:"idleNanoseconds"`
	// Settling bounds the wait between measurements until a process is at rest.
	Settling time.Duration `json:"-"`
	// ControllerQPS limits the requests per second of kube-controller-manager.
	ControllerQPS int `json:"controllerQPS"`
}

func parseOptions(args []string) (*options, error) {
	o := &options{Root: "."}
	var bursts, contenders string
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.StringVar(&o.Out, "out", "bin/bench", "`folder` for report.json, table.txt, table.md and performance.svg")
	fs.BoolVar(&o.Docs, "docs", false, "put table and plot into docs/, too")
	fs.StringVar(&contenders, "contenders", strings.Join(allContenders, ","), "who is measured")
	fs.IntVar(&o.Rounds, "rounds", 3, "times that everything is measured")
	fs.StringVar(&bursts, "bursts", "1,100,300", "numbers of claims made at once")
	fs.IntVar(&o.BaselineBurst, "baseline-burst", 20, "the same for the baseline, whose rate does not depend on it")
	fs.IntVar(&o.Singles, "singles", 20, "single claims per round")
	fs.IntVar(&o.BaselineSingles, "baseline-singles", 7, "the same for the baseline, which waits for its request limit before each")
	fs.IntVar(&o.Volumes, "volumes", 10000, "volumes in the populated cluster")
	fs.IntVar(&o.Sizes, "sizes", 7, "volumes of each size that are deleted")
	fs.StringVar(&o.Large, "large", "1Ti", "the larger size, beside 1Gi")
	fs.DurationVar(&o.Idle, "idle", time.Minute, "time that the provisioner is watched doing nothing")
	fs.DurationVar(&o.Settling, "settling", time.Minute, "time after which it is not waited any more that a process comes to rest")
	fs.IntVar(&o.ControllerQPS, "controller-qps", 200, "kube-controller-manager's --kube-api-qps; its burst is twice that")
	if err := fs.Parse(args); err != nil {
		return nil, err
	}
	for text := range strings.SplitSeq(bursts, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || len(o.Bursts) > 0 && n <= o.Bursts[len(o.Bursts)-1] {
			return nil, fmt.Errorf("-bursts is %q: want rising numbers with commas between", bursts)
		}
		o.Bursts = append(o.Bursts, n)
	}
	o.Contenders = strings.Split(contenders, ",")
	return o, o.validate()
}

func (o *options) validate() error {
	for _, name := range o.Contenders {
		if !contains(allContenders, name) {
			return fmt.Errorf("-contenders: %q is none of %s", name, strings.Join(allContenders, ", "))
		}
	}
	if !contains(o.Contenders, this) {
		return fmt.Errorf("-contenders: %q must be among them", this)
	}
	for _, n := range []int{o.Rounds, o.BaselineBurst, o.Singles, o.BaselineSingles, o.Volumes, o.Sizes, o.ControllerQPS, int(o.Idle)} {
		if n < 1 {
			return errors.New("every number must be at least 1")
		}
	}
	return nil
}

// top is the largest burst, the one that the requirements are about.
func (o *options) top() int { return o.Bursts[len(o.Bursts)-1] }

// run measures, and writes the results.
func run(ctx context.Context, o *options, out io.Writer) (err error) {
	begin := time.Now()
	say := func(line string) {
		// If progress can't be shown, that is no reason to stop.
		_, _ = fmt.Fprintf(out, "%6.1f s  %s\n", time.Since(begin).Seconds(), line)
	}
	binary := filepath.Join(o.Root, "bin", "rbd-provisioner")
	if _, err := os.Stat(binary); err != nil {
		return fmt.Errorf("find the provisioner: %w: run \"make build\"", err)
	}
	rig, err := cluster.Start(ctx, cluster.Config{ControllerQPS: o.ControllerQPS, Progress: say})
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			rig.DumpLogs(out)
		}
		err = errors.Join(err, rig.Stop())
	}()
	b, err := newBench(ctx, o, rig, binary, say)
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.measure(ctx); err != nil {
		return err
	}
	b.report.Seconds = time.Since(begin).Seconds()
	return publish(ctx, o, b.report, out)
}
