package compat

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// collect reads events until there are count, as "PUT key=value".
func collect(t *testing.T, ctx context.Context, events clientv3.WatchChan, count int) []string {
	t.Helper()
	var seen []string
	for len(seen) < count {
		select {
		case response, open := <-events:
			if !open || response.Err() != nil {
				t.Fatalf("the watch has ended after %d events: %v", len(seen), response.Err())
			}
			for _, event := range response.Events {
				seen = append(seen, fmt.Sprintf("%s %s=%s", event.Type, event.Kv.Key, event.Kv.Value))
			}
		case <-ctx.Done():
			t.Fatalf("%d of %d events came: %v", len(seen), count, seen)
		}
	}
	return seen
}

// created waits until a watch stands, so that what follows is seen by it.
func created(t *testing.T, events clientv3.WatchChan) {
	t.Helper()
	if response := <-events; !response.Created {
		t.Fatalf("not created: %v", response)
	}
}

func TestWatchFromNow(t *testing.T) {
	client, ctx := connect(t)
	events := client.Watch(ctx, "watch/now/", clientv3.WithPrefix(), clientv3.WithCreatedNotify())
	created(t, events)
	put(t, ctx, client, "watch/now/a", "1")
	put(t, ctx, client, "watch/other", "1")
	put(t, ctx, client, "watch/now/b", "2")
	if _, err := client.Delete(ctx, "watch/now/", clientv3.WithPrefix()); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(collect(t, ctx, events, 4), ", ")
	equal(t, "events", got, "PUT watch/now/a=1, PUT watch/now/b=2, DELETE watch/now/a=, DELETE watch/now/b=")
}

func TestWatchHistoryWithPreviousPairs(t *testing.T) {
	client, ctx := connect(t)
	first := put(t, ctx, client, "watch/history", "1")
	put(t, ctx, client, "watch/history", "2")
	must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "watch/history"))
	events := client.Watch(ctx, "watch/history", clientv3.WithRev(first), clientv3.WithPrevKV())
	var previous []string
	revision := first
	for len(previous) < 3 {
		response := <-events
		for _, event := range response.Events {
			equal(t, "revision", event.Kv.ModRevision, revision)
			equal(t, "is create", event.IsCreate(), revision == first)
			revision++
			previous = append(previous, string(event.PrevKv.GetValue()))
		}
		if response.Header.Revision < revision-1 {
			t.Errorf("a header of revision %d with an event of %d", response.Header.Revision, revision-1)
		}
	}
	equal(t, "previous values", strings.Join(previous, ","), ",1,2")
}

func TestWatchFromAFutureRevision(t *testing.T) {
	client, ctx := connect(t)
	now := put(t, ctx, client, "watch/future", "0")
	events := client.Watch(ctx, "watch/future", clientv3.WithRev(now+3), clientv3.WithCreatedNotify())
	created(t, events)
	for number := 1; number <= 4; number++ {
		put(t, ctx, client, "watch/future", fmt.Sprint(number))
	}
	equal(t, "events", strings.Join(collect(t, ctx, events, 2), ", "), "PUT watch/future=3, PUT watch/future=4")
}

func TestWatchFilters(t *testing.T) {
	client, ctx := connect(t)
	noPut := client.Watch(ctx, "watch/filter", clientv3.WithFilterPut(), clientv3.WithCreatedNotify())
	noDelete := client.Watch(ctx, "watch/filter", clientv3.WithFilterDelete(), clientv3.WithCreatedNotify())
	created(t, noPut)
	created(t, noDelete)
	put(t, ctx, client, "watch/filter", "1")
	must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "watch/filter"))
	put(t, ctx, client, "watch/filter", "2")
	equal(t, "without puts", strings.Join(collect(t, ctx, noPut, 1), ", "), "DELETE watch/filter=")
	equal(t, "without deletes", strings.Join(collect(t, ctx, noDelete, 2), ", "), "PUT watch/filter=1, PUT watch/filter=2")
}

func TestWatchOfACompactedRevisionEnds(t *testing.T) {
	client, ctx := connect(t)
	first := put(t, ctx, client, "watch/compacted", "1")
	second := put(t, ctx, client, "watch/compacted", "2")
	if _, err := client.Compact(ctx, second); err != nil {
		t.Fatal(err)
	}
	response := <-client.Watch(ctx, "watch/compacted", clientv3.WithRev(first))
	if !errors.Is(response.Err(), rpctypes.ErrCompacted) {
		t.Errorf("got %v, want %v", response.Err(), rpctypes.ErrCompacted)
	}
	equal(t, "compact revision", response.CompactRevision, second)
}

func TestProgressOnRequest(t *testing.T) {
	client, ctx := connect(t)
	events := client.Watch(ctx, "watch/progress", clientv3.WithCreatedNotify())
	created(t, events)
	revision := put(t, ctx, client, "watch/elsewhere", "1")
	for {
		if err := client.RequestProgress(ctx); err != nil {
			t.Fatal(err)
		}
		response := <-events
		if !response.IsProgressNotify() {
			t.Fatalf("not a progress notification: %v", response)
		}
		if response.Header.Revision >= revision {
			return
		}
	}
}

func TestProgressIsNotified(t *testing.T) {
	client, ctx := connect(t)
	events := client.Watch(ctx, "watch/idle", clientv3.WithProgressNotify(), clientv3.WithCreatedNotify())
	created(t, events)
	revision := put(t, ctx, client, "watch/elsewhere", "1")
	for {
		select {
		case response := <-events:
			if !response.IsProgressNotify() {
				t.Fatalf("not a progress notification: %v", response)
			}
			if response.Header.Revision >= revision {
				return
			}
		case <-ctx.Done():
			t.Fatal("no notification of the current revision")
		}
	}
}

// The revisions of one big transaction arrive as fragments, which the client puts together.
func TestFragments(t *testing.T) {
	client, ctx := connect(t)
	const keys = 5
	for number := range keys {
		put(t, ctx, client, fmt.Sprintf("watch/fragment/%d", number), strings.Repeat("x", 1<<20))
	}
	deleted := must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "watch/fragment/", clientv3.WithPrefix()))
	events := client.Watch(ctx, "watch/fragment/", clientv3.WithPrefix(), clientv3.WithFragment(), clientv3.WithPrevKV(),
		clientv3.WithRev(deleted.Header.Revision))
	response := <-events
	equal(t, "events of one revision, in one piece", len(response.Events), keys)
	for _, event := range response.Events {
		equal(t, "previous value", len(event.PrevKv.Value), 1<<20)
	}
}

func TestManyWatchersOfOneStream(t *testing.T) {
	client, ctx := connect(t)
	const watchers = 300
	channels := make([]clientv3.WatchChan, watchers)
	for number := range channels {
		channels[number] = client.Watch(ctx, fmt.Sprintf("watch/many/%d", number), clientv3.WithCreatedNotify())
	}
	for _, channel := range channels {
		created(t, channel)
	}
	for number := range channels {
		put(t, ctx, client, fmt.Sprintf("watch/many/%d", number), fmt.Sprint(number))
	}
	for number, channel := range channels {
		want := fmt.Sprintf("PUT watch/many/%d=%d", number, number)
		equal(t, "event", collect(t, ctx, channel, 1)[0], want)
	}
}

// Watches that start anywhere in a stream of writes see each revision once, in order.
func TestWatchesUnderLoadMissNothing(t *testing.T) {
	client, ctx := connect(t)
	const writes, watchers = 600, 6
	start := put(t, ctx, client, "watch/load", "start")
	var group sync.WaitGroup
	for number := range watchers {
		group.Go(func() {
			if number%2 == 1 {
				time.Sleep(time.Duration(number) * 10 * time.Millisecond)
			}
			next := start + 1
			for response := range client.Watch(ctx, "watch/load", clientv3.WithRev(start+1)) {
				for _, event := range response.Events {
					if event.Kv.ModRevision != next {
						t.Errorf("watcher %d: revision %d, want %d", number, event.Kv.ModRevision, next)
						return
					}
					next++
				}
				if next == start+1+writes {
					return
				}
			}
			t.Errorf("watcher %d ended at revision %d of %d", number, next, start+writes)
		})
	}
	for number := range writes {
		put(t, ctx, client, "watch/load", fmt.Sprint(number))
	}
	group.Wait()
}

func TestWatchEndsWithItsContext(t *testing.T) {
	client, ctx := connect(t)
	watched, cancel := context.WithCancel(ctx)
	events := client.Watch(watched, "watch/cancel", clientv3.WithCreatedNotify())
	created(t, events)
	cancel()
	for range events {
	}
	put(t, ctx, client, "watch/cancel", "1")
}

// A watch goes on where it was when the server is back.
func TestWatchResumesAfterARestart(t *testing.T) {
	client, ctx := connect(t)
	events := client.Watch(ctx, "watch/restart", clientv3.WithCreatedNotify())
	created(t, events)
	put(t, ctx, client, "watch/restart", "before")
	equal(t, "before", collect(t, ctx, events, 1)[0], "PUT watch/restart=before")
	restart(t)
	equal(t, "data is kept", value(t, ctx, client, "watch/restart"), "before")
	put(t, ctx, client, "watch/restart", "after")
	equal(t, "after", collect(t, ctx, events, 1)[0], "PUT watch/restart=after")
}

// The library chooses no ids, so this is raw gRPC on its connection.
func TestWatchIdsOfTheClient(t *testing.T) {
	client, ctx := connect(t)
	stream, err := pb.NewWatchClient(client.ActiveConnection()).Watch(ctx)
	if err != nil {
		t.Fatal(err)
	}
	create := func(id int64, key string) *pb.WatchResponse {
		request := &pb.WatchCreateRequest{Key: []byte(key), WatchId: id}
		union := &pb.WatchRequest_CreateRequest{CreateRequest: request}
		if err := stream.Send(&pb.WatchRequest{RequestUnion: union}); err != nil {
			t.Fatal(err)
		}
		return must[*pb.WatchResponse](t)(stream.Recv())
	}
	equal(t, "chosen", create(17, "watch/ids").WatchId, 17)
	equal(t, "the server's first", create(0, "watch/ids").WatchId, 0)
	duplicate := create(17, "watch/ids")
	equal(t, "a duplicate", duplicate.WatchId, -1)
	equal(t, "is created and canceled", duplicate.Created && duplicate.Canceled, true)
	equal(t, "its reason", duplicate.CancelReason, "mvcc: duplicate watch ID provided on the WatchStream")
	put(t, ctx, client, "watch/ids", "1")
	ids := map[int64]bool{}
	for len(ids) < 2 {
		response := must[*pb.WatchResponse](t)(stream.Recv())
		equal(t, "event", response.Events[0].Type, mvccpb.Event_PUT)
		ids[response.WatchId] = true
	}
	equal(t, "both watches", ids[17] && ids[0], true)
}
