package compat;

import static java.nio.charset.StandardCharsets.UTF_8;
import static java.util.concurrent.TimeUnit.SECONDS;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.etcd.jetcd.ByteSequence;
import io.etcd.jetcd.Client;
import io.etcd.jetcd.ClientBuilder;
import io.etcd.jetcd.Election;
import io.etcd.jetcd.KeyValue;
import io.etcd.jetcd.Watch;
import io.etcd.jetcd.auth.Permission;
import io.etcd.jetcd.election.LeaderResponse;
import io.etcd.jetcd.kv.GetResponse;
import io.etcd.jetcd.kv.TxnResponse;
import io.etcd.jetcd.lease.LeaseKeepAliveResponse;
import io.etcd.jetcd.op.Cmp;
import io.etcd.jetcd.op.CmpTarget;
import io.etcd.jetcd.op.Op;
import io.etcd.jetcd.options.DeleteOption;
import io.etcd.jetcd.options.GetOption;
import io.etcd.jetcd.options.LeaseOption;
import io.etcd.jetcd.options.PutOption;
import io.etcd.jetcd.options.WatchOption;
import io.etcd.jetcd.watch.WatchEvent;
import io.etcd.jetcd.watch.WatchResponse;
import io.grpc.stub.StreamObserver;
import java.io.File;
import java.io.IOException;
import java.net.Socket;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.LinkedBlockingQueue;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.Timeout;
import org.junit.jupiter.api.condition.EnabledIfEnvironmentVariable;

/**
 * Tests a running server with jetcd.
 *
 * <p>They assert what the library's users rely on, and pass on etcd as well as on starling. The server is at
 * COMPAT_ENDPOINT; a line sent to COMPAT_CONTROL restarts it. Another
 * one at COMPAT_TLS_ENDPOINT wants certificates of its clients, as they are in the folder COMPAT_CERTIFICATES.
 */
@Timeout(30)
@EnabledIfEnvironmentVariable(named = "COMPAT_ENDPOINT", matches = ".+")
class JetcdTest {
    private static Client client;

    @BeforeAll
    static void connect() {
        client = Client.builder().endpoints(System.getenv("COMPAT_ENDPOINT")).build();
    }

    @AfterAll
    static void close() {
        client.close();
    }

    private static void restart() throws IOException {
        String[] address = System.getenv("COMPAT_CONTROL").split(":");
        try (Socket control = new Socket(address[0], Integer.parseInt(address[1]))) {
            control.getOutputStream().write("restart\n".getBytes(UTF_8));
            assertTrue(control.getInputStream().read() >= 0, "the server did not come up again");
        }
    }

    private static ByteSequence bytes(String text) {
        return ByteSequence.from(text, UTF_8);
    }

    private static <T> T get(CompletableFuture<T> answer) throws Exception {
        return answer.get(20, SECONDS);
    }

    /** Stores a pair and returns its revision. A server that is not back yet is asked again. */
    private static long put(String key, String value) throws Exception {
        PutOption option = PutOption.builder().withAutoRetry().build();
        return get(client.getKVClient().put(bytes(key), bytes(value), option)).getHeader().getRevision();
    }

    private static long putLeased(String key, long lease) throws Exception {
        PutOption option = PutOption.builder().withLeaseId(lease).build();
        return get(client.getKVClient().put(bytes(key), bytes("leased"), option)).getHeader().getRevision();
    }

    private static List<String> pairs(GetResponse response) {
        return response.getKvs().stream().map(pair -> pair.getKey() + "=" + pair.getValue()).toList();
    }

    private static List<String> read(String key) throws Exception {
        return pairs(get(client.getKVClient().get(bytes(key))));
    }

    private static GetOption.Builder prefix() {
        return GetOption.builder().isPrefix(true);
    }

    private static void assertRefused(String reason, CompletableFuture<?> answer) {
        Exception error = assertThrows(ExecutionException.class, () -> get(answer));
        assertTrue(error.getMessage().contains(reason), error.getMessage());
    }

    /** The events of one watch, as "PUT key=value", and how it ended. */
    private static final class Events implements Watch.Listener, AutoCloseable {
        private final BlockingQueue<String> events = new LinkedBlockingQueue<>();
        private final CompletableFuture<Void> created = new CompletableFuture<>();
        private final CompletableFuture<Void> ended = new CompletableFuture<>();
        private final Watch.Watcher watcher;

        /** Returns when the watch stands, so that what follows is seen by it. */
        Events(String key, WatchOption.Builder option) throws Exception {
            watcher = client.getWatchClient().watch(bytes(key), option.withCreateNotify(true).build(), this);
            get(CompletableFuture.anyOf(created, ended.exceptionally(error -> null)));
        }

        @Override
        public void onNext(WatchResponse response) {
            if (response.isCreatedNotify()) {
                created.complete(null);
            }
            for (WatchEvent event : response.getEvents()) {
                KeyValue pair = event.getKeyValue();
                events.add(event.getEventType() + " " + pair.getKey() + "=" + pair.getValue());
            }
        }

        @Override
        public void onError(Throwable error) {
            ended.completeExceptionally(error);
        }

        @Override
        public void onCompleted() {
            ended.complete(null);
        }

        List<String> next(int count) throws InterruptedException {
            List<String> next = new ArrayList<>();
            while (next.size() < count) {
                String event = events.poll(20, SECONDS);
                assertTrue(event != null, "no more events came after " + next);
                next.add(event);
            }
            return next;
        }

        @Override
        public void close() {
            watcher.close();
        }
    }

    @Test
    void aPutIsReadBack() throws Exception {
        long first = put("put/key", "one");
        PutOption previous = PutOption.builder().withPrevKV().build();
        var second = get(client.getKVClient().put(bytes("put/key"), bytes("two"), previous));
        assertEquals("one", second.getPrevKv().getValue().toString());
        assertEquals(first + 1, second.getHeader().getRevision());
        KeyValue pair = get(client.getKVClient().get(bytes("put/key"))).getKvs().get(0);
        assertEquals("two", pair.getValue().toString());
        assertEquals(first, pair.getCreateRevision());
        assertEquals(first + 1, pair.getModRevision());
        assertEquals(2, pair.getVersion());
        GetOption old = GetOption.builder().withRevision(first).build();
        assertEquals(List.of("put/key=one"), pairs(get(client.getKVClient().get(bytes("put/key"), old))));
        assertEquals(List.of(), read("put/none"));
    }

    @Test
    void rangesAreSortedLimitedAndCounted() throws Exception {
        put("range/a", "3");
        put("range/b", "1");
        put("range/c", "2");
        put("range0", "outside");
        var kv = client.getKVClient();
        ByteSequence range = bytes("range/");
        assertEquals(List.of("range/a=3", "range/b=1", "range/c=2"), pairs(get(kv.get(range, prefix().build()))));
        GetOption sorted = prefix()
                .withSortField(GetOption.SortTarget.VALUE)
                .withSortOrder(GetOption.SortOrder.DESCEND)
                .build();
        assertEquals(List.of("range/a=3", "range/c=2", "range/b=1"), pairs(get(kv.get(range, sorted))));
        GetResponse page = get(kv.get(range, prefix().withLimit(2).build()));
        assertEquals(2, page.getKvs().size());
        assertTrue(page.isMore());
        assertEquals(3, page.getCount());
        GetResponse count = get(kv.get(range, prefix().withCountOnly(true).build()));
        assertEquals(3, count.getCount());
        assertEquals(List.of(), count.getKvs());
        assertEquals(List.of("range/a=", "range/b=", "range/c="),
                pairs(get(kv.get(range, prefix().withKeysOnly(true).build()))));
        GetOption inside = GetOption.builder().withRange(bytes("range/c")).build();
        assertEquals(List.of("range/b=1"), pairs(get(kv.get(bytes("range/b"), inside))));
    }

    @Test
    void deletesTakeAPrefixAndNoMore() throws Exception {
        put("delete/1", "1");
        put("delete/2", "2");
        put("delete0", "3");
        DeleteOption option = DeleteOption.builder().isPrefix(true).withPrevKV(true).build();
        var deleted = get(client.getKVClient().delete(bytes("delete/"), option));
        assertEquals(2, deleted.getDeleted());
        assertEquals(List.of("1", "2"), deleted.getPrevKvs().stream().map(pair -> pair.getValue().toString()).toList());
        assertEquals(0, get(client.getKVClient().delete(bytes("delete/"), option)).getDeleted());
        assertEquals(List.of("delete0=3"), read("delete0"));
    }

    private static TxnResponse swap(String from, String to) throws Exception {
        ByteSequence key = bytes("txn/key");
        return get(client.getKVClient()
                .txn()
                .If(new Cmp(key, Cmp.Op.EQUAL, CmpTarget.value(bytes(from))),
                        new Cmp(bytes("txn/none"), Cmp.Op.EQUAL, CmpTarget.createRevision(0)))
                .Then(Op.put(key, bytes(to), PutOption.DEFAULT), Op.get(key, GetOption.DEFAULT))
                .Else(Op.get(key, GetOption.DEFAULT), Op.delete(bytes("txn/none"), DeleteOption.DEFAULT))
                .commit());
    }

    @Test
    void aTransactionTakesOneOfItsBranches() throws Exception {
        put("txn/key", "old");
        TxnResponse yes = swap("old", "new");
        assertTrue(yes.isSucceeded());
        assertEquals(1, yes.getPutResponses().size());
        assertEquals(List.of("txn/key=new"), pairs(yes.getGetResponses().get(0)));
        TxnResponse no = swap("old", "newer");
        assertFalse(no.isSucceeded());
        assertEquals(List.of("txn/key=new"), pairs(no.getGetResponses().get(0)));
        assertEquals(0, no.getDeleteResponses().get(0).getDeleted());
        assertEquals(yes.getHeader().getRevision(), no.getHeader().getRevision());
    }

    @Test
    void transactionsNestAndMayNotPutAKeyTwice() throws Exception {
        Op put = Op.put(bytes("txn/nested"), bytes("1"), PutOption.DEFAULT);
        Op inner = Op.txn(new Cmp[0], new Op[] {put}, new Op[0]);
        TxnResponse nested = get(client.getKVClient().txn().Then(inner).commit());
        assertEquals(1, nested.getTxnResponses().get(0).getPutResponses().size());
        assertRefused("duplicate key given in txn request", client.getKVClient().txn().Then(put, put).commit());
    }

    @Test
    void aWatchSeesHistoryAndWhatFollows() throws Exception {
        long first = put("watch/a", "1");
        WatchOption.Builder option = WatchOption.builder().isPrefix(true).withRevision(first);
        try (Events events = new Events("watch/", option)) {
            put("watch/b", "2");
            get(client.getKVClient().delete(bytes("watch/a")));
            assertEquals(List.of("PUT watch/a=1", "PUT watch/b=2", "DELETE watch/a="), events.next(3));
        }
    }

    @Test
    void aWatchOfACompactedRevisionEnds() throws Exception {
        long first = put("compacted", "1");
        get(client.getKVClient().compact(put("compacted", "2")));
        try (Events events = new Events("compacted", WatchOption.builder().withRevision(first))) {
            assertRefused("required revision has been compacted", events.ended);
        }
    }

    @Test
    void aWatchSurvivesARestartOfTheServer() throws Exception {
        try (Events events = new Events("restart/", WatchOption.builder().isPrefix(true))) {
            put("restart/a", "1");
            put("restart/b", "2");
            assertEquals(List.of("PUT restart/a=1", "PUT restart/b=2"), events.next(2));
            restart();
            put("restart/a", "3");
            get(client.getKVClient().delete(bytes("restart/b")));
            assertEquals(List.of("PUT restart/a=3", "DELETE restart/b="), events.next(2));
        }
    }

    @Test
    void aLeaseExpiresAndTakesItsKeysAlong() throws Exception {
        try (Events events = new Events("lease/expires", WatchOption.builder().withNoPut(true))) {
            long lease = get(client.getLeaseClient().grant(1)).getID();
            putLeased("lease/expires", lease);
            assertEquals(List.of("DELETE lease/expires="), events.next(1));
            LeaseOption option = LeaseOption.DEFAULT;
            assertEquals(-1, get(client.getLeaseClient().timeToLive(lease, option)).getTTL());
            assertRefused("requested lease not found", client.getLeaseClient().revoke(lease));
        }
    }

    @Test
    void aLeaseThatIsKeptAliveStaysUntilItIsRevoked() throws Exception {
        long lease = get(client.getLeaseClient().grant(2)).getID();
        putLeased("lease/kept", lease);
        BlockingQueue<Long> renewed = new LinkedBlockingQueue<>();
        var keepAlive = client.getLeaseClient().keepAlive(lease, new StreamObserver<LeaseKeepAliveResponse>() {
            @Override
            public void onNext(LeaseKeepAliveResponse response) {
                renewed.add(response.getTTL());
            }

            @Override
            public void onError(Throwable error) {}

            @Override
            public void onCompleted() {}
        });
        // Together they take longer than the lease would last.
        for (int renewals = 0; renewals < 6; renewals++) {
            assertEquals(2, renewed.poll(20, SECONDS));
        }
        keepAlive.close();
        var left = get(client.getLeaseClient().timeToLive(lease, LeaseOption.builder().withAttachedKeys().build()));
        assertEquals(2, left.getGrantedTTL());
        assertEquals(List.of(bytes("lease/kept")), left.getKeys());
        get(client.getLeaseClient().revoke(lease));
        assertEquals(List.of(), read("lease/kept"));
    }

    @Test
    void aLockExcludesOthersWhileItIsHeld() throws Exception {
        long first = get(client.getLeaseClient().grant(10)).getID();
        long second = get(client.getLeaseClient().grant(10)).getID();
        var lock = client.getLockClient();
        ByteSequence held = get(lock.lock(bytes("lock"), first)).getKey();
        var waiting = lock.lock(bytes("lock"), second);
        get(client.getLeaseClient().keepAliveOnce(second));
        assertFalse(waiting.isDone());
        get(lock.unlock(held));
        get(lock.unlock(get(waiting).getKey()));
        assertEquals(0, get(client.getKVClient().get(bytes("lock/"), prefix().build())).getCount());
    }

    /** Collects the values that leaders of an election have. */
    private static final class Leaders implements Election.Listener {
        private final BlockingQueue<String> values = new LinkedBlockingQueue<>();

        @Override
        public void onNext(LeaderResponse response) {
            values.add(response.getKv().getValue().toString());
        }

        @Override
        public void onError(Throwable error) {}

        @Override
        public void onCompleted() {}
    }

    @Test
    void anElectionHasOneLeaderAtATime() throws Exception {
        var election = client.getElectionClient();
        ByteSequence name = bytes("night-watch");
        Leaders leaders = new Leaders();
        long first = get(client.getLeaseClient().grant(10)).getID();
        long second = get(client.getLeaseClient().grant(10)).getID();
        var leader = get(election.campaign(name, first, bytes("first"))).getLeader();
        election.observe(name, leaders);
        assertEquals("first", leaders.values.poll(20, SECONDS));
        var waiting = election.campaign(name, second, bytes("second"));
        get(election.proclaim(leader, bytes("first again")));
        assertEquals("first again", leaders.values.poll(20, SECONDS));
        assertFalse(waiting.isDone());
        get(election.resign(leader));
        assertEquals("second", leaders.values.poll(20, SECONDS));
        get(election.resign(get(waiting).getLeader()));
        assertRefused("NoLeaderException", election.leader(name));
    }

    @Test
    void theServerTellsAboutItself() throws Exception {
        var members = get(client.getClusterClient().listMember()).getMembers();
        assertEquals(List.of("solo"), members.stream().map(member -> member.getName()).toList());
        var status = get(client.getMaintenanceClient().statusMember(System.getenv("COMPAT_ENDPOINT")));
        assertEquals(members.get(0).getId(), status.getLeader());
        assertTrue(status.getVersion().startsWith("3."), status.getVersion());
    }

    /** A client by TLS, without a certificate of its own if that is null. */
    private static ClientBuilder secure(String certificate) throws Exception {
        String folder = System.getenv("COMPAT_CERTIFICATES");
        return Client.builder()
                .endpoints(System.getenv("COMPAT_TLS_ENDPOINT"))
                .authority("127.0.0.1")
                .sslContext(context -> {
                    context.trustManager(new File(folder, "ca.pem"));
                    if (certificate != null) {
                        context.keyManager(new File(folder, certificate + ".pem"), new File(folder, certificate + ".key"));
                    }
                });
    }

    private static Client as(String user, String password) throws Exception {
        return secure("client").user(bytes(user)).password(bytes(password)).build();
    }

    @Test
    void byTlsAClientShowsItsCertificate() throws Exception {
        try (Client known = secure("client").build(); Client unknown = secure(null).build()) {
            get(known.getKVClient().put(bytes("tls/key"), bytes("1")));
            assertEquals(List.of("tls/key=1"), pairs(get(known.getKVClient().get(bytes("tls/key")))));
            assertThrows(Exception.class, () -> unknown.getKVClient().get(bytes("tls/key")).get(2, SECONDS));
        }
    }

    @Test
    void usersMayDoWhatTheirRolesAllow() throws Exception {
        try (Client anybody = secure("client").build()) {
            var auth = anybody.getAuthClient();
            get(auth.userAdd(bytes("root"), bytes("secret")));
            get(auth.roleAdd(bytes("root")));
            get(auth.userGrantRole(bytes("root"), bytes("root")));
            get(auth.userAdd(bytes("alice"), bytes("word")));
            get(auth.roleAdd(bytes("reader")));
            get(auth.roleGrantPermission(
                    bytes("reader"), bytes("auth/shared/"), bytes("auth/shared0"), Permission.Type.READ));
            get(auth.roleGrantPermission(
                    bytes("reader"), bytes("auth/alice"), ByteSequence.EMPTY, Permission.Type.READWRITE));
            get(auth.userGrantRole(bytes("alice"), bytes("reader")));
            assertRefused("user name already exists", auth.userAdd(bytes("alice"), bytes("word")));
            assertRefused("role name not found", auth.userGrantRole(bytes("alice"), bytes("none")));
            assertEquals(List.of("reader"), get(auth.userGet(bytes("alice"))).getRoles());
            assertEquals(2, get(auth.roleGet(bytes("reader"))).getPermissions().size());
            get(anybody.getKVClient().put(bytes("auth/shared/a"), bytes("1")));
            get(auth.authEnable());
            try (Client user = as("alice", "word"); Client admin = as("root", "secret"); Client wrong = as("alice", "no")) {
                var kv = user.getKVClient();
                var shared = get(kv.get(bytes("auth/shared/"), prefix().build()));
                assertEquals(List.of("auth/shared/a=1"), pairs(shared));
                get(kv.put(bytes("auth/alice"), bytes("2")));
                assertRefused("permission denied", kv.put(bytes("auth/shared/a"), bytes("3")));
                assertRefused("permission denied", kv.get(bytes("auth/other")));
                assertRefused("permission denied", user.getAuthClient().userAdd(bytes("bob"), bytes("word")));
                // The library does not pass on what the server says to a wrong password.
                assertRefused("UNAUTHENTICATED", wrong.getKVClient().get(bytes("auth/alice")));
                get(admin.getAuthClient().userRevokeRole(bytes("alice"), bytes("reader")));
                assertRefused("permission denied", kv.get(bytes("auth/alice")));
                get(admin.getAuthClient().authDisable());
            }
            assertEquals(List.of("auth/alice=2"), pairs(get(anybody.getKVClient().get(bytes("auth/alice")))));
        }
    }
}
