package compat

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"
)

func TestPutGetDelete(t *testing.T) {
	client, ctx := connect(t)
	first := put(t, ctx, client, "kv/a", "1")
	second := must[*clientv3.PutResponse](t)(client.Put(ctx, "kv/a", "2", clientv3.WithPrevKV()))
	equal(t, "revision", second.Header.Revision, first+1)
	equal(t, "previous value", string(second.PrevKv.Value), "1")
	got := must[*clientv3.GetResponse](t)(client.Get(ctx, "kv/a"))
	equal(t, "version", got.Kvs[0].Version, 2)
	equal(t, "create revision", got.Kvs[0].CreateRevision, first)
	past := must[*clientv3.GetResponse](t)(client.Get(ctx, "kv/a", clientv3.WithRev(first)))
	equal(t, "past value", string(past.Kvs[0].Value), "1")
	equal(t, "header of a read of the past", past.Header.Revision, first+1)
	deleted := must[*clientv3.DeleteResponse](t)(client.Delete(ctx, "kv/a", clientv3.WithPrevKV()))
	equal(t, "deleted", deleted.Deleted, 1)
	equal(t, "deleted value", string(deleted.PrevKvs[0].Value), "2")
	equal(t, "after the delete", value(t, ctx, client, "kv/a"), "(none)")
}

func TestRangesAndOrders(t *testing.T) {
	client, ctx := connect(t)
	for _, pair := range []string{"b1", "c3", "a2", "d0"} {
		put(t, ctx, client, "order/"+pair[:1], pair[1:])
	}
	for _, test := range []struct {
		name string
		opts []clientv3.OpOption
		want string
	}{
		{"prefix", nil, "a b c d"},
		{"limit", []clientv3.OpOption{clientv3.WithLimit(2)}, "a b"},
		{"descending", []clientv3.OpOption{clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend)}, "d c b a"},
		{"by value", []clientv3.OpOption{clientv3.WithSort(clientv3.SortByValue, clientv3.SortAscend)}, "d b a c"},
		{"first created", clientv3.WithFirstCreate(), "b"},
		{"last created", clientv3.WithLastCreate(), "d"},
		{"first key", clientv3.WithFirstKey(), "a"},
		{"last key", clientv3.WithLastKey(), "d"},
		{"first revision", clientv3.WithFirstRev(), "b"},
		{"last revision", clientv3.WithLastRev(), "d"},
		{"keys only", []clientv3.OpOption{clientv3.WithKeysOnly()}, "a b c d"},
		{"serializable", []clientv3.OpOption{clientv3.WithSerializable()}, "a b c d"},
		{"count only", []clientv3.OpOption{clientv3.WithCountOnly()}, ""},
	} {
		opts := append([]clientv3.OpOption{clientv3.WithPrefix()}, test.opts...)
		got := must[*clientv3.GetResponse](t)(client.Get(ctx, "order/", opts...))
		var keys []string
		for _, kv := range got.Kvs {
			keys = append(keys, strings.TrimPrefix(string(kv.Key), "order/"))
		}
		equal(t, test.name, strings.Join(keys, " "), test.want)
		equal(t, test.name+": count", got.Count, 4)
	}
}

// Pages of a pinned revision are what lists of large prefixes are made of.
func TestPagesAtOneRevision(t *testing.T) {
	client, ctx := connect(t)
	const keys = 25
	for number := range keys {
		put(t, ctx, client, fmt.Sprintf("page/%02d", number), "1")
	}
	var revision int64
	key, seen := "page/", 0
	for {
		got := must[*clientv3.GetResponse](t)(client.Get(ctx, key, clientv3.WithRange(clientv3.GetPrefixRangeEnd("page/")),
			clientv3.WithLimit(10), clientv3.WithRev(revision)))
		if revision == 0 {
			revision = got.Header.Revision
			put(t, ctx, client, "page/00a", "later")
		}
		seen += len(got.Kvs)
		if !got.More {
			break
		}
		key = string(got.Kvs[len(got.Kvs)-1].Key) + "\x00"
	}
	equal(t, "keys of all pages", seen, keys)
}

func TestErrorsAreThoseOfRpctypes(t *testing.T) {
	client, ctx := connect(t)
	revision := put(t, ctx, client, "error/a", "1")
	put(t, ctx, client, "error/a", "2")
	if _, err := client.Compact(ctx, revision+1); err != nil {
		t.Fatal(err)
	}
	tooMany := make([]clientv3.Op, 129)
	for number := range tooMany {
		tooMany[number] = clientv3.OpPut(fmt.Sprintf("error/%d", number), "1")
	}
	do := func(op clientv3.Op) func() error {
		return func() error {
			_, err := client.Do(ctx, op)
			return err
		}
	}
	for _, test := range []struct {
		name string
		call func() error
		want error
	}{
		{"empty key", do(clientv3.OpPut("", "1")), rpctypes.ErrEmptyKey},
		{"compacted", do(clientv3.OpGet("error/a", clientv3.WithRev(revision))), rpctypes.ErrCompacted},
		{"future", do(clientv3.OpGet("error/a", clientv3.WithRev(revision+1000000))), rpctypes.ErrFutureRev},
		{"too many operations", do(clientv3.OpTxn(nil, tooMany, nil)), rpctypes.ErrTooManyOps},
		{"duplicate key", do(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("a", "1"), clientv3.OpPut("a", "2")}, nil)), rpctypes.ErrDuplicateKey},
		{"too large", do(clientv3.OpPut("error/big", strings.Repeat("x", 1<<20+1<<19))), rpctypes.ErrRequestTooLarge},
		{"unknown lease", do(clientv3.OpPut("error/b", "1", clientv3.WithLease(99))), rpctypes.ErrLeaseNotFound},
		{"ignored value of a missing key", do(clientv3.OpPut("error/missing", "", clientv3.WithIgnoreValue())), rpctypes.ErrKeyNotFound},
		{"ignored lease of a missing key", do(clientv3.OpPut("error/missing", "1", clientv3.WithIgnoreLease())), rpctypes.ErrKeyNotFound},
		{"compact again", func() error { _, err := client.Compact(ctx, revision+1); return err }, rpctypes.ErrCompacted},
		{"compact ahead", func() error { _, err := client.Compact(ctx, revision+1000000); return err }, rpctypes.ErrFutureRev},
		{"revoke", func() error { _, err := client.Revoke(ctx, 99); return err }, rpctypes.ErrLeaseNotFound},
		{"lease too long", func() error { _, err := client.Grant(ctx, clientv3.MaxLeaseTTL+1); return err }, rpctypes.ErrLeaseTTLTooLarge},
		{"keep alive once", func() error { _, err := client.KeepAliveOnce(ctx, 99); return err }, rpctypes.ErrLeaseNotFound},
	} {
		if err := test.call(); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
	}
}

func TestTxn(t *testing.T) {
	client, ctx := connect(t)
	create := func(value string) *clientv3.TxnResponse {
		return must[*clientv3.TxnResponse](t)(client.Txn(ctx).
			If(clientv3.Compare(clientv3.ModRevision("txn/a"), "=", 0)).
			Then(clientv3.OpPut("txn/a", value)).
			Else(clientv3.OpGet("txn/a")).Commit())
	}
	first := create("1")
	equal(t, "first", first.Succeeded, true)
	second := create("2")
	equal(t, "second", second.Succeeded, false)
	kv := second.Responses[0].GetResponseRange().Kvs[0]
	equal(t, "value", string(kv.Value), "1")
	equal(t, "revision of the txn", kv.ModRevision, first.Header.Revision)
	all := must[*clientv3.TxnResponse](t)(client.Txn(ctx).
		If(clientv3.Compare(clientv3.Value("txn/").WithPrefix(), "=", "1"),
			clientv3.Compare(clientv3.Version("txn/a"), ">", 0),
			clientv3.Compare(clientv3.LeaseValue("txn/a"), "=", clientv3.NoLease)).
		Then(clientv3.OpTxn(nil, []clientv3.Op{clientv3.OpPut("txn/b", "1"), clientv3.OpDelete("txn/a")}, nil)).Commit())
	equal(t, "compares of ranges and leases", all.Succeeded, true)
	equal(t, "after", value(t, ctx, client, "txn/a")+value(t, ctx, client, "txn/b"), "(none)1")
}

// Compare and swap from many clients: each value is taken once.
func TestCompareAndSwapLosesNothing(t *testing.T) {
	client, ctx := connect(t)
	const workers, rounds = 8, 25
	put(t, ctx, client, "cas", "")
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			for range rounds {
				if err := appendOne(ctx, client, "cas"); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	equal(t, "appended", len(value(t, ctx, client, "cas")), workers*rounds)
}

func appendOne(ctx context.Context, client *clientv3.Client, key string) error {
	for {
		got, err := client.Get(ctx, key)
		if err != nil {
			return err
		}
		kv := got.Kvs[0]
		swapped, err := client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", kv.ModRevision)).
			Then(clientv3.OpPut(key, string(kv.Value)+"x")).Commit()
		if err != nil || swapped.Succeeded {
			return err
		}
	}
}

func TestNamespace(t *testing.T) {
	client, ctx := connect(t)
	inner := namespace.NewKV(client.KV, "space/")
	if _, err := inner.Put(ctx, "a", "1"); err != nil {
		t.Fatal(err)
	}
	equal(t, "outside", value(t, ctx, client, "space/a"), "1")
	got := must[*clientv3.GetResponse](t)(inner.Get(ctx, "", clientv3.WithPrefix()))
	equal(t, "inside", string(got.Kvs[0].Key), "a")
}

func TestOrderingWrapperSeesNoStep(t *testing.T) {
	client, ctx := connect(t)
	violation := func(op clientv3.Op, response clientv3.OpResponse, previous int64) error {
		return fmt.Errorf("revision %d after %d", response.Get().Header.Revision, previous)
	}
	ordered := ordering.NewKV(client.KV, violation)
	for number := range 50 {
		if _, err := ordered.Put(ctx, "ordered", fmt.Sprint(number)); err != nil {
			t.Fatal(err)
		}
		if _, err := ordered.Get(ctx, "ordered", clientv3.WithSerializable()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestCountsOfTheCluster(t *testing.T) {
	client, ctx := connect(t)
	members := must[*clientv3.MemberListResponse](t)(client.MemberList(ctx))
	equal(t, "members", len(members.Members), 1)
	if err := client.Sync(ctx); err != nil {
		t.Fatal(err)
	}
	equal(t, "endpoints after a sync", strings.Join(client.Endpoints(), " "), "http://"+endpoint(t))
	put(t, ctx, client, "synced", "1")
	status := must[*clientv3.StatusResponse](t)(client.Status(ctx, endpoint(t)))
	if status.DbSize <= 0 || status.DbSizeInUse <= 0 || status.Leader == 0 || status.RaftTerm == 0 || status.RaftIndex == 0 {
		t.Errorf("status has a zero: %v", status)
	}
	hash := must[*clientv3.HashKVResponse](t)(client.HashKV(ctx, endpoint(t), 0))
	again := must[*clientv3.HashKVResponse](t)(client.HashKV(ctx, endpoint(t), 0))
	equal(t, "hash of the same revision", again.Hash, hash.Hash)
	must[*clientv3.DefragmentResponse](t)(client.Defragment(ctx, endpoint(t)))
	alarms := must[*clientv3.AlarmResponse](t)(client.AlarmList(ctx))
	equal(t, "alarms", len(alarms.Alarms), 0)
}
