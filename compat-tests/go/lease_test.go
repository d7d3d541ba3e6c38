package compat

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/leasing"
)

func grant(t *testing.T, ctx context.Context, client *clientv3.Client, ttl int64) clientv3.LeaseID {
	t.Helper()
	return must[*clientv3.LeaseGrantResponse](t)(client.Grant(ctx, ttl)).ID
}

func TestLeaseOfKeys(t *testing.T) {
	client, ctx := connect(t)
	lease := grant(t, ctx, client, 600)
	first := put(t, ctx, client, "lease/a", "1", clientv3.WithLease(lease))
	put(t, ctx, client, "lease/b", "1", clientv3.WithLease(lease))
	left := must[*clientv3.LeaseTimeToLiveResponse](t)(client.TimeToLive(ctx, lease, clientv3.WithAttachedKeys()))
	equal(t, "granted", left.GrantedTTL, 600)
	equal(t, "keys", len(left.Keys), 2)
	if left.TTL <= 590 || left.TTL > 600 {
		t.Errorf("%d seconds are left of 600", left.TTL)
	}
	revoked := must[*clientv3.LeaseRevokeResponse](t)(client.Revoke(ctx, lease))
	equal(t, "one revision for both keys", revoked.Header.Revision, first+2)
	equal(t, "a", value(t, ctx, client, "lease/a"), "(none)")
	gone := must[*clientv3.LeaseTimeToLiveResponse](t)(client.TimeToLive(ctx, lease))
	equal(t, "time to live of none", gone.TTL, -1)
}

func TestLeases(t *testing.T) {
	client, ctx := connect(t)
	lease := grant(t, ctx, client, 600)
	known := func() bool {
		for _, status := range must[*clientv3.LeaseLeasesResponse](t)(client.Leases(ctx)).Leases {
			if status.ID == lease {
				return true
			}
		}
		return false
	}
	equal(t, "listed", known(), true)
	must[*clientv3.LeaseRevokeResponse](t)(client.Revoke(ctx, lease))
	equal(t, "listed after the revoke", known(), false)
}

func TestShortLeaseIsRaisedAndExpires(t *testing.T) {
	client, ctx := connect(t)
	granted := must[*clientv3.LeaseGrantResponse](t)(client.Grant(ctx, 1))
	equal(t, "least time to live", granted.TTL, 2)
	started := time.Now()
	revision := put(t, ctx, client, "lease/expires", "1", clientv3.WithLease(granted.ID))
	events := client.Watch(ctx, "lease/expires", clientv3.WithRev(revision+1))
	equal(t, "event", collect(t, ctx, events, 1)[0], "DELETE lease/expires=")
	if took := time.Since(started); took < time.Second || took > 8*time.Second {
		t.Errorf("a lease of 2 s expired after %v", took)
	}
	if _, err := client.KeepAliveOnce(ctx, granted.ID); !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		t.Errorf("keep alive of an expired lease: %v", err)
	}
}

// A lease that is kept alive outlives its time.
func TestKeepAlive(t *testing.T) {
	client, ctx := connect(t)
	lease := grant(t, ctx, client, 2)
	put(t, ctx, client, "lease/kept", "1", clientv3.WithLease(lease))
	kept, stop := context.WithCancel(ctx)
	defer stop()
	answers := must[<-chan *clientv3.LeaseKeepAliveResponse](t)(client.KeepAlive(kept, lease))
	for started := time.Now(); time.Since(started) < 4*time.Second; {
		answer, open := <-answers
		if !open {
			t.Fatal("the lease was lost")
		}
		equal(t, "time to live", answer.TTL, 2)
	}
	equal(t, "key", value(t, ctx, client, "lease/kept"), "1")
	stop()
	for range answers {
	}
	revision := must[*clientv3.GetResponse](t)(client.Get(ctx, "lease/kept")).Kvs[0].ModRevision
	events := client.Watch(ctx, "lease/kept", clientv3.WithRev(revision+1))
	equal(t, "when nobody keeps it", collect(t, ctx, events, 1)[0], "DELETE lease/kept=")
}

func TestManyKeepAlives(t *testing.T) {
	client, ctx := connect(t)
	const leases = 300
	var channels []<-chan *clientv3.LeaseKeepAliveResponse
	for range leases {
		lease := grant(t, ctx, client, 60)
		channels = append(channels, must[<-chan *clientv3.LeaseKeepAliveResponse](t)(client.KeepAlive(ctx, lease)))
	}
	for _, answers := range channels {
		if answer := <-answers; answer == nil || answer.TTL != 60 {
			t.Fatalf("keep alive: %v", answer)
		}
	}
}

func TestKeyMovesBetweenLeases(t *testing.T) {
	client, ctx := connect(t)
	first, second := grant(t, ctx, client, 600), grant(t, ctx, client, 600)
	put(t, ctx, client, "lease/moves", "1", clientv3.WithLease(first))
	put(t, ctx, client, "lease/moves", "2", clientv3.WithLease(second))
	must[*clientv3.LeaseRevokeResponse](t)(client.Revoke(ctx, first))
	equal(t, "after the revoke of the first", value(t, ctx, client, "lease/moves"), "2")
	put(t, ctx, client, "lease/moves", "3")
	must[*clientv3.LeaseRevokeResponse](t)(client.Revoke(ctx, second))
	equal(t, "after a put without a lease", value(t, ctx, client, "lease/moves"), "3")
}

func TestLeaseSurvivesARestart(t *testing.T) {
	client, ctx := connect(t)
	lease := grant(t, ctx, client, 600)
	put(t, ctx, client, "lease/restart", "1", clientv3.WithLease(lease))
	restart(t)
	left := must[*clientv3.LeaseTimeToLiveResponse](t)(client.TimeToLive(ctx, lease, clientv3.WithAttachedKeys()))
	equal(t, "granted", left.GrantedTTL, 600)
	equal(t, "keys", fmt.Sprintf("%s", left.Keys), "[lease/restart]")
	must[*clientv3.LeaseRevokeResponse](t)(client.Revoke(ctx, lease))
	equal(t, "key", value(t, ctx, client, "lease/restart"), "(none)")
}

// The leasing wrapper caches reads and relies on compares of its own keys.
func TestLeasingCache(t *testing.T) {
	client, ctx := connect(t)
	cached, stop, err := leasing.NewKV(client, "lease/cache/")
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	put(t, ctx, client, "cached", "1")
	for range 2 {
		got := must[*clientv3.GetResponse](t)(cached.Get(ctx, "cached"))
		equal(t, "cached", string(got.Kvs[0].Value), "1")
	}
	must[*clientv3.PutResponse](t)(cached.Put(ctx, "cached", "2"))
	got := must[*clientv3.GetResponse](t)(cached.Get(ctx, "cached"))
	equal(t, "after a put", string(got.Kvs[0].Value), "2")
	equal(t, "to others", strings.TrimSpace(value(t, ctx, client, "cached")), "2")
}
