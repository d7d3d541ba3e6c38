// Tests a running server with the npm package etcd3.
//
// They assert what the library's users rely on, and pass on etcd as well as on starling. The server is at
// COMPAT_ENDPOINT; a line sent to COMPAT_CONTROL restarts it. Another one at COMPAT_TLS_ENDPOINT wants certificates of its
// clients, as they are in the folder COMPAT_CERTIFICATES.

"use strict";

const assert = require("node:assert/strict");
const { once } = require("node:events");
const fs = require("node:fs");
const net = require("node:net");
const path = require("node:path");
const { after, before, test } = require("node:test");
const {
  Etcd3,
  EtcdAuthenticationFailedError,
  EtcdLeaseInvalidError,
  EtcdLockFailedError,
  EtcdPermissionDeniedError,
  EtcdRoleNotFoundError,
  EtcdUserExistsError,
  GRPCGenericError,
  Range,
} = require("etcd3");

const DEADLINE = { timeout: 30_000 };

let client;

before(() => {
  client = new Etcd3({ hosts: process.env.COMPAT_ENDPOINT });
});

after(() => client.close());

async function restart() {
  const [host, port] = process.env.COMPAT_CONTROL.split(":");
  const control = net.connect(Number(port), host);
  control.write("restart\n");
  await once(control, "data");
  control.destroy();
}

// Calls `attempt` until it no longer throws or rejects. The library gives up after a few attempts of its own.
async function eventually(attempt) {
  const end = Date.now() + DEADLINE.timeout / 2;
  for (;;) {
    try {
      return await attempt();
    } catch (error) {
      if (Date.now() > end) throw error;
      await new Promise((resolve) => setTimeout(resolve, 50));
    }
  }
}

// Reads events of a watcher until there are `count`, as "PUT key=value".
function collect(watcher, count) {
  return new Promise((resolve, reject) => {
    const seen = [];
    watcher.on("error", reject).on("data", (response) => {
      for (const { type, kv } of response.events) {
        seen.push(`${type.toUpperCase()} ${kv.key}=${kv.value}`);
      }
      if (seen.length >= count) resolve(seen);
    });
  });
}

test("a put is read back", DEADLINE, async () => {
  const first = await client.put("put/key").value("one");
  const second = await client.put("put/key").value("two").getPrevious();
  assert.equal(second.value.toString(), "one");
  assert.equal(Number(second.header.revision), Number(first.header.revision) + 1);
  assert.equal(await client.get("put/key").string(), "two");
  const old = await client.get("put/key").revision(first.header.revision).string();
  assert.equal(old, "one");
  const [pair] = (await client.get("put/key").exec()).kvs;
  assert.equal(pair.create_revision, first.header.revision);
  assert.equal(pair.mod_revision, second.header.revision);
  assert.equal(pair.version, "2");
  assert.equal(await client.get("put/none"), null);
});

test("bytes of any kind are keys and values", DEADLINE, async () => {
  const key = Buffer.from([0x62, 0x00, 0xff, 0x80]);
  const value = Buffer.alloc(100_000, 0xfe);
  await client.put(key).value(value);
  assert.deepEqual(await client.get(key).buffer(), value);
  await client.put("bytes/empty").value("");
  assert.equal(await client.get("bytes/empty").string(), "");
});

test("ranges are sorted, limited and counted", DEADLINE, async () => {
  for (const [key, value] of [["a", "3"], ["b", "1"], ["c", "2"]]) {
    await client.put(`range/${key}`).value(value);
  }
  await client.put("range0").value("outside");
  const all = () => client.getAll().prefix("range/");
  assert.deepEqual(await all().strings(), { "range/a": "3", "range/b": "1", "range/c": "2" });
  assert.deepEqual(await all().sort("Value", "Descend").keys(), ["range/a", "range/c", "range/b"]);
  assert.equal(await all().count(), 3);
  const page = await all().limit(2).exec();
  assert.deepEqual([page.kvs.length, page.more, page.count], [2, true, "3"]);
  const inside = await client.getAll().inRange({ start: "range/b", end: "range/c" }).keys();
  assert.deepEqual(inside, ["range/b"]);
  const { mod_revision: revision } = (await client.get("range/b").exec()).kvs[0];
  assert.deepEqual(await all().minModRevision(revision).keys(), ["range/b", "range/c"]);
});

test("deletes take a prefix, and no more", DEADLINE, async () => {
  for (const key of ["delete/1", "delete/2", "delete0"]) await client.put(key).value(key);
  const deleted = await client.delete().prefix("delete/").getPrevious();
  assert.deepEqual(deleted.map((pair) => pair.value.toString()), ["delete/1", "delete/2"]);
  assert.equal((await client.delete().prefix("delete/").exec()).deleted, "0");
  assert.equal(await client.get("delete0").string(), "delete0");
});

test("a transaction takes one of its branches", DEADLINE, async () => {
  await client.put("txn/key").value("old");
  const swap = (from, to) =>
    client
      .if("txn/key", "Value", "==", from)
      .and("txn/none", "Create", "==", 0)
      .then(client.put("txn/key").value(to), client.get("txn/key"))
      .else(client.get("txn/key"), client.delete().key("txn/none"))
      .commit();
  const yes = await swap("old", "new");
  assert.equal(yes.succeeded, true);
  assert.deepEqual(yes.responses.map((one) => one.response), ["response_put", "response_range"]);
  assert.equal(yes.responses[1].response_range.kvs[0].value.toString(), "new");
  const no = await swap("old", "newer");
  assert.equal(no.succeeded, false);
  assert.equal(no.responses[0].response_range.kvs[0].value.toString(), "new");
  assert.equal(no.responses[1].response_delete_range.deleted, "0");
  assert.equal(no.header.revision, yes.header.revision);
});

test("a transaction may not put a key twice", DEADLINE, async () => {
  const twice = client
    .if("txn/twice", "Version", "==", 0)
    .then(client.put("txn/twice").value("1"), client.put("txn/twice").value("2"))
    .commit();
  await assert.rejects(twice, /duplicate key given in txn request/);
});

test("transactions in memory count without a loss", DEADLINE, async () => {
  await client.put("stm/count").value(0);
  const increment = () =>
    client.stm({ retries: 50 }).transact(async (tx) => {
      await tx.put("stm/count").value((await tx.get("stm/count").number()) + 1);
    });
  await Promise.all(Array.from({ length: 8 }, increment));
  assert.equal(await client.get("stm/count").number(), 8);
});

test("a watch sees history and what follows", DEADLINE, async () => {
  const first = await client.put("watch/a").value("1");
  const watcher = client.watch().prefix("watch/").startRevision(first.header.revision).watcher();
  const events = collect(watcher, 3);
  await client.put("watch/b").value("2");
  await client.delete().key("watch/a");
  assert.deepEqual(await events, ["PUT watch/a=1", "PUT watch/b=2", "DELETE watch/a="]);
  await watcher.cancel();
});

test("a watch has the pair before a change", DEADLINE, async () => {
  await client.put("previous").value("1");
  const watcher = await client.watch().key("previous").withPreviousKV().create();
  const deleted = once(watcher, "delete");
  await client.delete().key("previous");
  const [, previous] = await deleted;
  assert.equal(previous.value.toString(), "1");
  await watcher.cancel();
});

test("a watch filters, and several share a stream", DEADLINE, async () => {
  const puts = await client.watch().prefix("filter/").only("put").create();
  const deletes = await client.watch().prefix("filter/").only("delete").create();
  const [put, deleted] = [collect(puts, 2), collect(deletes, 1)];
  await client.put("filter/a").value("1");
  await client.delete().key("filter/a");
  await client.put("filter/a").value("2");
  assert.deepEqual(await put, ["PUT filter/a=1", "PUT filter/a=2"]);
  assert.deepEqual(await deleted, ["DELETE filter/a="]);
  await puts.cancel();
  await deletes.cancel();
});

test("a watch of a compacted revision ends", DEADLINE, async () => {
  const first = await client.put("compacted").value("1");
  const { header } = await client.put("compacted").value("2");
  await client.kv.compact({ revision: header.revision });
  const watcher = client.watch().key("compacted").startRevision(first.header.revision).watcher();
  const [error] = await once(watcher, "error");
  assert.match(error.message, /^Watcher canceled/);
});

test("a watch survives a restart of the server", DEADLINE, async () => {
  const watcher = await client.watch().prefix("restart/").create();
  const before = collect(watcher, 2);
  const all = collect(watcher, 4);
  await client.put("restart/a").value("1");
  await client.put("restart/b").value("2");
  await before;
  await restart();
  await eventually(() => client.put("restart/a").value("3"));
  await client.delete().key("restart/b");
  const expected = ["PUT restart/a=1", "PUT restart/b=2", "PUT restart/a=3", "DELETE restart/b="];
  assert.deepEqual(await all, expected);
  await watcher.cancel();
});

test("a lease expires and takes its keys along", DEADLINE, async () => {
  const watcher = await client.watch().key("lease/expires").only("delete").create();
  const deleted = collect(watcher, 1);
  const lease = client.lease(1, { autoKeepAlive: false });
  await lease.put("lease/expires").value("1");
  assert.deepEqual(await deleted, ["DELETE lease/expires="]);
  await assert.rejects(lease.keepaliveOnce(), EtcdLeaseInvalidError);
  await assert.rejects(lease.put("lease/expires").value("2"), EtcdLeaseInvalidError);
  await watcher.cancel();
});

test("a lease that is kept alive stays, until it is revoked", DEADLINE, async () => {
  const lease = client.lease(2);
  await lease.put("lease/kept").value("1");
  // Two thirds of a second apart: together they take longer than the lease would last.
  for (let renewals = 0; renewals < 6; renewals++) await once(lease, "keepaliveSucceeded");
  assert.equal(await client.get("lease/kept").string(), "1");
  const { ID } = await lease.keepaliveOnce();
  const left = await client.leaseClient.leaseTimeToLive({ ID, keys: true });
  assert.deepEqual([left.grantedTTL, left.keys.map(String)], ["2", ["lease/kept"]]);
  await lease.revoke();
  assert.equal(await client.get("lease/kept"), null);
});

test("a lease survives a restart of the server", DEADLINE, async () => {
  const lease = client.lease(5);
  await lease.put("lease/restart").value("1");
  await restart();
  await once(lease, "keepaliveSucceeded");
  assert.equal(await eventually(() => client.get("lease/restart").string()), "1");
  await lease.revoke();
});

test("a lock excludes others while it is held", DEADLINE, async () => {
  const [first, second] = [client.lock("lock").ttl(10), client.lock("lock").ttl(10)];
  await first.acquire();
  await assert.rejects(second.acquire(), EtcdLockFailedError);
  await first.release();
  assert.equal(await client.lock("lock").do(() => "inside"), "inside");
  assert.equal(await client.get("lock"), null);
});

test("a lock of a holder that went away becomes free", DEADLINE, async () => {
  const lease = client.lease(1, { autoKeepAlive: false });
  await lease.put("lock/left").value("");
  await assert.rejects(client.lock("lock/left").acquire(), EtcdLockFailedError);
  const lock = await eventually(() => client.lock("lock/left").ttl(10).acquire());
  await lock.release();
});

test("an election has one leader at a time", DEADLINE, async () => {
  const election = client.election("night-watch", 10);
  const first = election.campaign("first");
  await first.wait();
  const observer = await election.observe();
  assert.equal(observer.leader(), "first");

  const second = election.campaign("second");
  const elected = second.wait();
  await once(second, "_isWaiting");
  assert.equal(await election.leader(), "first");

  const changed = once(observer, "change");
  await first.resign();
  await elected;
  assert.deepEqual(await changed, ["second"]);
  await observer.cancel();
  await second.resign();
  assert.equal(await election.leader(), undefined);
});

test("the server tells about itself", DEADLINE, async () => {
  const status = await client.maintenance.status();
  assert.equal(status.leader, status.header.member_id);
  assert.match(status.version, /^3\.\d+\.\d+/);
});

// A client by TLS. It has to be closed.
function secure(options, certificate = "client") {
  const file = (name) => fs.readFileSync(path.join(process.env.COMPAT_CERTIFICATES, name));
  const credentials = { rootCertificate: file("ca.pem") };
  if (certificate) {
    credentials.privateKey = file(`${certificate}.key`);
    credentials.certChain = file(`${certificate}.pem`);
  }
  return new Etcd3({ hosts: process.env.COMPAT_TLS_ENDPOINT, credentials, ...options });
}

test("by TLS, a client shows its certificate", DEADLINE, async () => {
  const known = secure();
  await known.put("tls/key").value("1");
  const watcher = await known.watch().key("tls/key").create();
  const events = collect(watcher, 1);
  await known.put("tls/key").value("2");
  assert.deepEqual(await events, ["PUT tls/key=2"]);
  await watcher.cancel();
  const unknown = secure({}, null);
  await assert.rejects(async () => unknown.get("tls/key").string(), GRPCGenericError);
  unknown.close();
  known.close();
});

test("users may do what their roles allow", DEADLINE, async () => {
  const anybody = secure();
  const root = await anybody.user("root").create("secret");
  await root.addRole(await anybody.role("root").create());
  const alice = await anybody.user("alice").create("word");
  const reader = await anybody.role("reader").create();
  await reader.grant([
    { permission: "Read", range: Range.prefix("auth/shared/") },
    { permission: "Readwrite", key: "auth/alice" },
  ]);
  await alice.addRole("reader");
  await assert.rejects(anybody.user("alice").create("word"), EtcdUserExistsError);
  await assert.rejects(alice.addRole("none"), EtcdRoleNotFoundError);
  assert.deepEqual((await alice.roles()).map((role) => role.name), ["reader"]);
  assert.deepEqual((await reader.permissions()).map((one) => one.permission), ["Readwrite", "Read"]);
  await anybody.put("auth/shared/a").value("1");
  await anybody.auth.authEnable();

  const as = (username, password) => secure({ auth: { username, password } });
  const user = as("alice", "word");
  assert.deepEqual(await user.getAll().prefix("auth/shared/").strings(), { "auth/shared/a": "1" });
  await user.put("auth/alice").value("2");
  await assert.rejects(async () => user.put("auth/shared/a").value("3"), EtcdPermissionDeniedError);
  await assert.rejects(async () => user.get("auth/other").string(), EtcdPermissionDeniedError);
  await assert.rejects(async () => user.user("bob").create("word"), EtcdPermissionDeniedError);
  const stranger = as("alice", "wrong");
  await assert.rejects(async () => stranger.get("auth/alice").string(), EtcdAuthenticationFailedError);
  const admin = as("root", "secret");
  await admin.user("alice").removeRole("reader");
  await assert.rejects(async () => user.get("auth/alice").string(), EtcdPermissionDeniedError);
  await admin.auth.authDisable();
  assert.equal(await anybody.get("auth/alice").string(), "2");
  for (const each of [anybody, user, stranger, admin]) each.close();
});
