//! A node's life: start, serve until a signal, end in order.
//!
//! Order of the start: the socket's name first, so that a second instance changes nothing; then reactors; then
//! the socket answers; then the configuration is read; then everything may be called.
//! Order of the end: no more requests, no more hosts, work in flight done, data flushed, reactors stopped.
//! The end has a deadline: whatever hangs costs [`END_DEADLINE`] and an exit code, never a hang.

use super::file::{self, ConfigError};
use super::flush;
use super::logging::Log;
use super::node::{Node, NodeError};
use super::server::{BindError, Bound, Server};
use crate::env::CoreList;
use crate::reactor::{self, IdleMode, ReactorSet, StartError};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the whole end may take: the sum of the deadlines below, and the reactors' own.
pub const END_DEADLINE: Duration = Duration::from_secs(15);
/// How long calls that clients wait for may go on after a signal.
const CALLS_DEADLINE: Duration = Duration::from_secs(3);
/// How long the commands of connected hosts may take to end.
const HOSTS_DEADLINE: Duration = Duration::from_secs(4);
/// How long flushing all devices may take.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);
/// Signals closer together than this are one: `timeout`, terminals and service managers signal a process and its group.
const SECOND_SIGNAL_AFTER: Duration = Duration::from_secs(1);
/// SPDK's applications end in order at each of these.
const END_SIGNALS: [i32; 5] = [SIGINT, SIGTERM, SIGQUIT, SIGHUP, SIGUSR1];

/// What `lockstep serve` is told.
#[derive(Debug, Clone)]
pub struct Options {
    /// Configuration file.
    pub config: Option<PathBuf>,
    /// Control socket.
    pub socket: PathBuf,
    /// Cores, one reactor each; the first core of the process if left out, as SPDK does.
    pub cores: Option<CoreList>,
    /// How reactors idle.
    pub idle: IdleMode,
    /// Limit of data-buffer memory.
    pub memory_mib: usize,
    /// Wait for `framework_start_init` before reading the configuration.
    pub wait_for_rpc: bool,
}

/// Why a node did not start, or did not end as it should.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The control socket cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The reactors do not start.
    #[error(transparent)]
    Reactors(#[from] StartError),
    /// What a node consists of does not start.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The configuration cannot be put into effect.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Data that was acknowledged may not survive a power cut.
    #[error("not flushed at the end: {0}")]
    NotFlushed(String),
    /// The operating system refuses something that every process gets.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
}

/// Runs a node until a signal ends it.
pub fn serve(options: &Options) -> Result<(), ServeError> {
    let log = Log::start();
    let io = |action| move |source| ServeError::Io { action, source };
    let signals = Signals::new(END_SIGNALS).map_err(io("listen for signals"))?;
    let bound = Bound::bind(&options.socket)?;
    let reactors = ReactorSet::start(&reactor::Config {
        cores: options.cores.clone().unwrap_or_else(|| CoreList::available().first(1)),
        idle: options.idle,
        memory_bytes: options.memory_mib << 20,
    })?;
    let node = Node::new(log, reactors)?;
    let server = Server::start(bound, node.clone()).map_err(io("start a thread"))?;
    watch_signals(signals, node.clone()).map_err(io("start a thread"))?;

    if !options.wait_for_rpc {
        node.begin_start();
    }
    let outcome = start(&node, options);
    if outcome.is_ok() && !node.is_stopping() {
        tracing::info!(socket = %options.socket.display(), reactors = node.reactors().count(), "serving");
        node.wait_stopping();
    }
    let ended = end(&node, server);
    outcome.and(ended)
}

fn start(node: &Arc<Node>, options: &Options) -> Result<(), ServeError> {
    if !node.wait_for_start() {
        return Ok(());
    }
    if let Some(config) = &options.config {
        file::load(node, config)?;
    }
    node.started();
    Ok(())
}

/// The first signal ends the node in order; one that comes some time later, at once.
fn watch_signals(mut signals: Signals, node: Arc<Node>) -> std::io::Result<()> {
    std::thread::Builder::new().name("signals".to_string()).spawn(move || {
        let mut first = None;
        for signal in signals.forever() {
            let told = *first.get_or_insert_with(Instant::now);
            if node.is_stopping() && told.elapsed() < SECOND_SIGNAL_AFTER {
                continue;
            }
            if node.is_stopping() {
                tracing::error!(signal, "a second signal: ending at once");
                std::process::exit(128 + signal);
            }
            tracing::info!(signal, "ending in order; a second signal ends at once");
            node.stopping();
        }
    })?;
    Ok(())
}

fn end(node: &Arc<Node>, server: Server) -> Result<(), ServeError> {
    node.stopping();
    // If even this thread cannot be had, the end goes on without the deadline.
    let _ = std::thread::Builder::new().name("end-deadline".to_string()).spawn(|| {
        std::thread::sleep(END_DEADLINE);
        tracing::error!("the node did not end within {END_DEADLINE:?}; giving up on what hangs");
        std::process::exit(1);
    });
    server.stop(CALLS_DEADLINE);
    match node.nvmf().shut_down(HOSTS_DEADLINE) {
        Ok(true) => {}
        Ok(false) => tracing::warn!("commands of hosts were still in flight after {HOSTS_DEADLINE:?}"),
        Err(error) => tracing::warn!(%error, "hosts could not be disconnected in order"),
    }
    node.groups().delete_all();
    let unflushed = flush::flush_all(node, FLUSH_DEADLINE);
    node.nvme_host().stop();
    node.reactors().stop();
    tracing::info!("ended");
    if unflushed.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = unflushed.iter().map(|(name, reason)| format!("{name} ({reason})")).collect();
    Err(ServeError::NotFlushed(named.join(", ")))
}
