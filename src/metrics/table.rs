//! The one table of metrics and the tables of label values. A name is written here and nowhere else.

use prometheus::proto::MetricType;

/// One row of the table.
#[derive(Debug)]
pub struct Definition {
    /// The name operators see.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricType,
    /// Label names, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// The help line.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($id:ident $kind:ident $name:literal [$($label:literal),*] $help:literal;)+) => {
        /// Every metric there is; the variants follow [`Metric::TABLE`].
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Metric { $(#[doc = $help] $id),+ }
        impl Metric {
            /// All of them, in the order of the exposition.
            pub const ALL: &'static [Metric] = &[$(Metric::$id),+];
            /// Name, type, labels and help of each.
            pub const TABLE: &'static [Definition] = &[$(Definition {
                name: $name, kind: MetricType::$kind, labels: &[$($label),*], help: $help,
            }),+];
            /// The row of this metric.
            pub fn definition(self) -> &'static Definition { &Self::TABLE[self as usize] }
        }
    };
}

metrics! {
    ActiveSessions       GAUGE     "superchat_active_sessions" [] "Sessions open now.";
    SessionsCreated      COUNTER   "superchat_sessions_created_total" [] "Sessions opened since start.";
    SessionsDisconnected COUNTER   "superchat_sessions_disconnected_total" [] "Sessions ended since start.";
    MessagesReceived     COUNTER   "superchat_messages_received_total" ["type"] "Frames from clients by message name.";
    MessagesSent         COUNTER   "superchat_messages_sent_total" ["type"] "Frames to clients by message name.";
    MessagesBroadcast    COUNTER   "superchat_messages_broadcast_total" [] "NEW_MESSAGE broadcasts, not deliveries.";
    MessagesDelivered    COUNTER   "superchat_messages_delivered_total" ["channel_id", "thread_id"] "Deliveries of NEW_MESSAGE by topic.";
    ChannelSubscribers   GAUGE     "superchat_channel_subscribers" ["channel_id"] "Live subscribers of a channel.";
    ThreadSubscribers    GAUGE     "superchat_thread_subscribers" ["thread_id"] "Live subscribers of a thread.";
    BroadcastFanout      HISTOGRAM "superchat_broadcast_fanout" ["type"] "Recipients per broadcast.";
    BroadcastDuration    HISTOGRAM "superchat_broadcast_duration_seconds" ["type"] "From commit to the last recipient's queue flushed.";

    ProcessCpu           COUNTER   "process_cpu_seconds_total" [] "User and system CPU time spent in seconds.";
    ProcessResident      GAUGE     "process_resident_memory_bytes" [] "Resident memory size in bytes.";
    ProcessVirtual       GAUGE     "process_virtual_memory_bytes" [] "Virtual memory size in bytes.";
    ProcessOpenFds       GAUGE     "process_open_fds" [] "Open file descriptors.";
    ProcessMaxFds        GAUGE     "process_max_fds" [] "Upper limit of open file descriptors.";
    ProcessStartTime     GAUGE     "process_start_time_seconds" [] "Start of the process in seconds since the Unix epoch.";
    ProcessThreads       GAUGE     "process_threads" [] "Threads of the process.";

    BuildInfo            GAUGE     "superchat_build_info" ["version", "commit", "rustc"] "Always 1; the labels say what runs here.";
    Connections          COUNTER   "superchat_connections_total" ["transport"] "Connections accepted by way in.";
    ConnectionsRejected  COUNTER   "superchat_connections_rejected_total" ["reason"] "Connections turned away at the door.";
    Disconnects          COUNTER   "superchat_disconnects_total" ["reason"] "Sessions ended by reason.";
    RequestDuration      HISTOGRAM "superchat_request_duration_seconds" ["type"] "From a frame read to its reply queued, by request.";
    PostAck              HISTOGRAM "superchat_post_ack_seconds" [] "From a POST_MESSAGE read to durable and acknowledged.";
    Errors               COUNTER   "superchat_errors_total" ["code"] "ERROR frames sent by code.";
    RateLimitHits        COUNTER   "superchat_rate_limit_hits_total" ["type"] "Requests refused by a rate limit.";
    AuthAttempts         COUNTER   "superchat_auth_attempts_total" ["method", "result"] "Logins tried by method and result.";
    Pings                COUNTER   "superchat_pings_total" [] "Heartbeats received from clients.";
    DecodeErrors         COUNTER   "superchat_decode_errors_total" ["kind"] "Frames that could not be read.";
    Channels             GAUGE     "superchat_channels" [] "Channels that exist.";
    RegisteredUsers      GAUGE     "superchat_registered_users" [] "Accounts that exist.";
    StoredMessages       GAUGE     "superchat_stored_messages" [] "Messages in the database.";
    OutboundQueueBytes   GAUGE     "superchat_outbound_queue_bytes" [] "Memory held for slow readers.";
    ShardLoopLag         GAUGE     "superchat_shard_loop_lag_seconds" ["shard"] "How late the shard's tick is or last was.";
    ShardSessions        GAUGE     "superchat_shard_sessions" ["shard"] "Sessions open on a shard.";
    DbCommit             HISTOGRAM "superchat_db_commit_seconds" [] "Duration of a commit.";
    DbBatchSize          HISTOGRAM "superchat_db_batch_size" [] "Commands committed together.";
    DbQueueDepth         GAUGE     "superchat_db_queue_depth" [] "Commands waiting for the writer.";
    DbQuery              HISTOGRAM "superchat_db_query_seconds" ["query"] "Duration of a read by query.";
    DbSize               GAUGE     "superchat_db_size_bytes" [] "Size of the database file.";
    DbWal                GAUGE     "superchat_db_wal_bytes" [] "Size of the write-ahead log.";
    DbFreeDisk           GAUGE     "superchat_db_free_disk_bytes" [] "Space left on the file system of the database.";
    DbErrors             COUNTER   "superchat_db_errors_total" ["kind"] "Storage errors by kind.";
    BackupLastSuccess    GAUGE     "superchat_backup_last_success_timestamp_seconds" [] "When the last backup ended well, in seconds since the Unix epoch.";
    LogDropped           COUNTER   "superchat_log_dropped_total" ["sink"] "Log lines lost under load.";
    Panics               COUNTER   "superchat_panics_total" [] "Panics, on whatever thread.";
    HttpRequests         COUNTER   "superchat_http_requests_total" ["server", "path", "status"] "Requests to the HTTP ports.";
    HttpDuration         HISTOGRAM "superchat_http_request_duration_seconds" ["server", "path", "status"] "Duration of requests to the HTTP ports.";
    TokioAliveTasks      GAUGE     "tokio_alive_tasks" ["shard"] "Tasks alive on a shard's runtime.";
    TokioWorkerBusy      COUNTER   "tokio_worker_busy_seconds_total" ["shard"] "Time a shard's runtime was busy.";
    JemallocAllocated    GAUGE     "jemalloc_allocated_bytes" [] "Bytes in use by the application.";
    JemallocActive       GAUGE     "jemalloc_active_bytes" [] "Bytes in active pages.";
    JemallocResident     GAUGE     "jemalloc_resident_bytes" [] "Bytes of the allocator in physical memory.";
    JemallocRetained     GAUGE     "jemalloc_retained_bytes" [] "Bytes of address space kept for reuse.";
}

/// A closed set of label values.
pub trait Label: Copy + 'static {
    /// Every value, in the order of [`Label::index`].
    const ALL: &'static [Self];
    /// The text operators see.
    fn label(self) -> &'static str;
    /// Its place in [`Label::ALL`].
    fn index(self) -> usize;
}

macro_rules! labels {
    ($($(#[$note:meta])* $Name:ident { $($Value:ident $text:literal),+ $(,)? })+) => {$(
        $(#[$note])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $Name { $(#[doc = concat!("`", $text, "`")] $Value),+ }
        impl Label for $Name {
            const ALL: &'static [Self] = &[$($Name::$Value),+];
            fn label(self) -> &'static str {
                match self { $($Name::$Value => $text),+ }
            }
            fn index(self) -> usize { self as usize }
        }
    )+};
}

labels! {
    /// The way a client came in.
    Transport { Tcp "tcp", Ssh "ssh", Websocket "websocket" }
    /// Why a connection was turned away at the door.
    Rejection { IpLimit "ip_limit", IpBan "ip_ban", ServerFull "server_full", Handshake "handshake" }
    /// Why a session ended; a deleted account counts as kicked.
    DisconnectReason {
        Client "client", Idle "idle", SlowConsumer "slow_consumer", ProtocolError "protocol_error", Kicked "kicked",
        Banned "banned", Shutdown "shutdown", IoError "io_error", Panic "panic",
    }
    /// Which rate limit was hit.
    RateLimit {
        Message "message", ChannelCreate "channel_create", Connection "connection", Directory "directory", Auth "auth",
        Dm "dm", Request "request",
    }
    /// How a login proved itself.
    AuthMethod { Password "password", SshKey "ssh_key" }
    /// What became of a login.
    AuthResult { Ok "ok", Failed "failed", Banned "banned", Throttled "throttled" }
    /// At which step a frame could not be read.
    DecodeError { Frame "frame", Compression "compression", Payload "payload", UnknownType "unknown_type" }
    /// What went wrong in storage.
    DbError { Busy "busy", Full "full", Io "io", Corrupt "corrupt" }
    /// What a broadcast was addressed to.
    Fanout { Channel "channel", Thread "thread" }
}
