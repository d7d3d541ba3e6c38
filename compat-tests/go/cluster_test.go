package compat

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// One client knows all members of a cluster (COMPAT_CLUSTER), and its calls go to them in turn: what it learns from one, it
// asks another. A line sent to COMPAT_CONTROL kills a member.
const (
	clusterDeadline = 120 * time.Second
	callTimeout     = 5 * time.Second
	// What may fail in a row before it counts as failing for ever.
	failuresMax = 100
	retryPause  = 20 * time.Millisecond

	counters     = 4
	increments   = 40
	lists        = 20
	listed       = 100
	page         = 15
	events       = 200
	watchedEvery = 15
)

type cluster struct {
	t      *testing.T
	ctx    context.Context
	stop   context.CancelFunc
	client *clientv3.Client
	// Whether all members are there, so that nothing may fail or be asked for anew.
	whole bool
}

func TestClientThatChangesMembers(t *testing.T) {
	endpoints := os.Getenv("COMPAT_CLUSTER")
	if endpoints == "" {
		t.Skip("COMPAT_CLUSTER is not set")
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: strings.Split(endpoints, ","), DialTimeout: callTimeout, Logger: zap.NewNop(),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), clusterDeadline)
	t.Cleanup(func() {
		cancel()
		client.Close()
	})
	c := &cluster{t: t, ctx: ctx, stop: cancel, client: client, whole: true}
	c.awaitTurns(len(strings.Split(endpoints, ",")))
	tallies := make([]counter, counters)
	c.work("whole", tallies, func() {})
	if t.Failed() {
		return
	}
	c.whole = false
	// In the middle of it.
	c.work("one gone", tallies, func() { kill(t) })
}

// awaitTurns waits until all members have answered.
func (c *cluster) awaitTurns(members int) {
	seen := map[uint64]bool{}
	for len(seen) < members {
		response, err := c.client.Get(c.ctx, "any")
		if err != nil {
			c.t.Fatal(err)
		}
		seen[response.Header.MemberId] = true
	}
}

// fail ends everything: nobody waits for what will not come.
func (c *cluster) fail(format string, args ...any) {
	c.t.Errorf(format, args...)
	c.stop()
}

func kill(t *testing.T) {
	control, err := net.Dial("tcp", os.Getenv("COMPAT_CONTROL"))
	if err != nil {
		t.Error(err)
		return
	}
	defer control.Close()
	if _, err := bufio.NewReader(control).ReadString('\n'); err != nil {
		t.Error(err)
	}
}

// work does everything at the same time, and something to the cluster once a part of it is done.
func (c *cluster) work(phase string, tallies []counter, halfway func()) {
	var group sync.WaitGroup
	for i := range tallies {
		group.Go(func() { tallies[i].increment(c, fmt.Sprintf("counter/%d", i)) })
	}
	started := make(chan struct{})
	group.Go(func() { c.list(phase) })
	group.Go(func() { c.watch(phase, started) })
	group.Go(func() {
		<-started
		c.put(phase, 0, events/4)
		halfway()
		c.put(phase, events/4, events)
	})
	group.Wait()
}

// try calls until there is an answer. What fails is tried again, for a while.
func try[T any](c *cluster, what string, call func(ctx context.Context) (T, error)) (T, bool) {
	for failures := 0; ; failures++ {
		ctx, cancel := context.WithTimeout(c.ctx, callTimeout)
		value, err := call(ctx)
		cancel()
		if err == nil {
			return value, true
		}
		if c.whole && !errors.Is(err, rpctypes.ErrCompacted) {
			c.fail("%s: %v", what, err)
			return value, false
		}
		if errors.Is(err, rpctypes.ErrCompacted) {
			return value, false
		}
		if failures >= failuresMax || c.ctx.Err() != nil {
			c.fail("%s fails for ever: %v", what, err)
			return value, false
		}
		time.Sleep(retryPause)
	}
}

// counter is a key that one client counts up by compare-and-swap.
type counter struct {
	// The last value that was written for certain, and how often anything was tried.
	value, tries int
}

func (n *counter) increment(c *cluster, key string) {
	failures := 0
	for done := 0; done < increments && !c.t.Failed(); {
		read, ok := try(c, "get", func(ctx context.Context) (*clientv3.GetResponse, error) {
			return c.client.Get(ctx, key)
		})
		if !ok {
			return
		}
		var value int
		var revision int64
		if len(read.Kvs) > 0 {
			value, _ = strconv.Atoi(string(read.Kvs[0].Value))
			revision = read.Kvs[0].ModRevision
		}
		if value < n.value || value > n.tries || c.whole && value != n.value {
			c.fail("%s is %d: %d is certain, %d were tried", key, value, n.value, n.tries)
			return
		}
		n.tries++
		ctx, cancel := context.WithTimeout(c.ctx, callTimeout)
		swap := c.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", revision))
		answer, err := swap.Then(clientv3.OpPut(key, strconv.Itoa(value+1))).Commit()
		cancel()
		if err == nil && answer.Succeeded {
			n.value, failures = value+1, 0
			done++
			continue
		}
		// Nobody else writes it.
		if failures++; failures > failuresMax || c.whole {
			c.fail("%s does not become %d: %v, %v", key, value+1, answer, err)
			return
		}
		time.Sleep(retryPause)
	}
}

// list reads pages at the revision of the first one, while the first and the last key are always changed together.
func (c *cluster) list(phase string) {
	prefix := fmt.Sprintf("list/%s/", phase)
	for i := range listed {
		key := fmt.Sprintf("%s%03d", prefix, i)
		if _, ok := try(c, "put", func(ctx context.Context) (*clientv3.PutResponse, error) {
			return c.client.Put(ctx, key, "0")
		}); !ok {
			return
		}
	}
	restarts := 0
	for i := 1; i <= lists && !c.t.Failed(); {
		value := strconv.Itoa(i)
		try(c, "txn", func(ctx context.Context) (*clientv3.TxnResponse, error) {
			first, last := clientv3.OpPut(prefix+"000", value), clientv3.OpPut(fmt.Sprintf("%s%03d", prefix, listed-1), value)
			return c.client.Txn(ctx).Then(first, last).Commit()
		})
		values, whole := c.listOnce(prefix)
		switch {
		case whole && (len(values) != listed || values[0] != values[listed-1]):
			c.fail("%d keys of %d, from %s to %s", len(values), listed, values[0], values[len(values)-1])
		case whole:
			i++
		default:
			if restarts++; restarts > failuresMax || c.whole {
				c.fail("lists are compacted for ever")
			}
		}
	}
}

// listOnce returns all values, and false if the revision was compacted before the end.
func (c *cluster) listOnce(prefix string) ([]string, bool) {
	var values []string
	var revision int64
	key := prefix
	for {
		response, ok := try(c, "list", func(ctx context.Context) (*clientv3.GetResponse, error) {
			end := clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix))
			return c.client.Get(ctx, key, end, clientv3.WithLimit(page), clientv3.WithRev(revision))
		})
		if !ok {
			return nil, false
		}
		if revision == 0 {
			revision = response.Header.Revision
		}
		for _, kv := range response.Kvs {
			values = append(values, string(kv.Value))
			key = string(kv.Key) + "\x00"
		}
		if !response.More {
			return values, true
		}
	}
}

func eventKey(phase string, i int) string {
	return fmt.Sprintf("event/%s/%04d", phase, i)
}

func (c *cluster) put(phase string, from, to int) {
	for i := from; i < to && !c.t.Failed(); i++ {
		try(c, "put", func(ctx context.Context) (*clientv3.PutResponse, error) {
			return c.client.Put(ctx, eventKey(phase, i), "v")
		})
	}
}

// watch sees every key that is put. After some events it goes on with a watch of its own, at another member.
func (c *cluster) watch(phase string, started chan struct{}) {
	prefix := fmt.Sprintf("event/%s/", phase)
	seen := map[string]bool{}
	revision := c.relist(prefix, seen)
	close(started)
	relists, moves := 0, 0
	for len(seen) < events && !c.t.Failed() {
		ctx, cancel := context.WithCancel(c.ctx)
		responses := c.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(revision+1))
		compacted := false
		for count := 0; count < watchedEvery && len(seen) < events && !compacted; {
			response, open := <-responses
			if !open {
				c.fail("%s: the watch has ended with %d of %d", phase, len(seen), events)
				break
			}
			compacted = response.CompactRevision != 0
			if err := response.Err(); err != nil && !compacted {
				c.fail("%s: %v", phase, err)
				break
			}
			for _, event := range response.Events {
				if event.Kv.ModRevision <= revision {
					c.fail("%s: revision %d after %d", phase, event.Kv.ModRevision, revision)
				}
				revision = event.Kv.ModRevision
				seen[string(event.Kv.Key)] = true
				count++
			}
		}
		cancel()
		moves++
		if compacted {
			relists++
			revision = c.relist(prefix, seen)
		}
	}
	if c.whole && relists > 0 || relists > failuresMax {
		c.fail("%s: the watch lost its place %d times", phase, relists)
	}
	c.t.Logf("%s: %d watches, %d of them lost", phase, moves, relists)
}

// relist sees what is there, and returns the revision of that.
func (c *cluster) relist(prefix string, seen map[string]bool) int64 {
	response, ok := try(c, "relist", func(ctx context.Context) (*clientv3.GetResponse, error) {
		return c.client.Get(ctx, prefix, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	})
	if !ok {
		return 0
	}
	for _, kv := range response.Kvs {
		seen[string(kv.Key)] = true
	}
	return response.Header.Revision
}
