// Package compat tests a running server with etcd's own client library.
//
// The tests assert what the library's users rely on, and run on etcd as well as on starling. The server is
// at COMPAT_ENDPOINT; a line sent to COMPAT_CONTROL restarts it.
package compat

import (
	"bufio"
	"context"
	"net"
	"os"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

// deadline is for one test; nothing here takes more than a few seconds.
const deadline = 30 * time.Second

func endpoint(t *testing.T) string {
	t.Helper()
	address := os.Getenv("COMPAT_ENDPOINT")
	if address == "" {
		t.Skip("COMPAT_ENDPOINT is not set")
	}
	return address
}

// connect returns a client of its own for the test, and a context that ends with it.
func connect(t *testing.T) (*clientv3.Client, context.Context) {
	t.Helper()
	config := clientv3.Config{Endpoints: []string{endpoint(t)}, DialTimeout: 5 * time.Second, Logger: zap.NewNop()}
	client, err := clientv3.New(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	t.Cleanup(func() {
		cancel()
		client.Close()
	})
	return client, ctx
}

// restart kills the server, starts it on the same data and waits until it serves.
func restart(t *testing.T) {
	t.Helper()
	control, err := net.Dial("tcp", os.Getenv("COMPAT_CONTROL"))
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	if _, err := control.Write([]byte("restart\n")); err != nil {
		t.Fatal(err)
	}
	if _, err := bufio.NewReader(control).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
}

func must[T any](t *testing.T) func(value T, err error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// put stores a value and returns its revision.
func put(t *testing.T, ctx context.Context, client *clientv3.Client, key, value string, opts ...clientv3.OpOption) int64 {
	t.Helper()
	response, err := client.Put(ctx, key, value, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return response.Header.Revision
}

// value returns what is stored under key, or "(none)".
func value(t *testing.T, ctx context.Context, client *clientv3.Client, key string) string {
	t.Helper()
	response, err := client.Get(ctx, key)
	if err != nil {
		t.Fatal(err)
	}
	if len(response.Kvs) == 0 {
		return "(none)"
	}
	return string(response.Kvs[0].Value)
}

func equal[T comparable](t *testing.T, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
