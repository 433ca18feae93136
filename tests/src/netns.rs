//! Network namespaces: one for each pod, with redirection to its sidecar as Istio does it, joined by a bridge that lies in a
//! namespace of its own, so that nothing of the machine's network is touched and several meshes may use the same addresses.
//!
//! ```text
//!  trysail-PID-N-node            trysail-PID-N-frontend-v1
//!  ┌───────────────────┐        ┌────────────────────────────────┐
//!  │ br0 10.244.0.1    │─ veth ─│ eth0 10.244.0.11               │
//!  │ control plane     │        │ nat: out → 15001, in → 15006   │
//!  └───────────────────┘        │ Envoy (uid 1337), workload     │
//!                               └────────────────────────────────┘
//! ```
//!
//! Without root the process starts itself once more within a user namespace of its own, where it may make network namespaces
//! but has no second user whom redirection could exempt; so there the sidecars run with `INTERCEPTION_MODE: NONE`.

mod rules;

use std::fs::File;
use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, anyhow, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::envoy::run;
use crate::{Say, quiet};

/// User of a sidecar, whose own traffic is not redirected.
pub const SIDECAR_UID: u32 = 1337;

/// Where the bridge is, and with it the control plane.
pub const NODE_IP: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);

/// The bridge's hardware address, a locally administered one.
const BRIDGE_MAC: &str = "02:00:00:00:00:01";

/// Set for the process within the user namespace.
const INSIDE: &str = "TRYSAIL_IN_USER_NAMESPACE";

/// How traffic comes to a sidecar: Istio's `INTERCEPTION_MODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interception {
    /// By rules in the pod's network namespace.
    Redirect,
    /// The same, but inbound without a change of addresses: the workload sees the client's own.
    Tproxy,
    /// Not at all: the client calls its sidecar's listeners.
    None,
}

/// Finds out what this machine allows, by trying. To be called first thing in `main`, as it may replace the process.
///
/// # Errors
/// When neither root nor user namespaces are there to make network namespaces.
pub fn prepare(say: Say) -> Result<Interception> {
    let is_root = rustix::process::geteuid().is_root();
    if std::env::var_os(INSIDE).is_some() {
        remove_leftovers();
        try_namespace().context("network namespaces do not work here, not even within a user namespace")?;
        return Ok(Interception::None);
    }
    if is_root {
        install_tools(say)?;
        remove_leftovers();
        match try_namespace() {
            Ok(()) => {
                return Ok(rules::probe(say));
            }
            Err(error) => say(&format!("root, but no network namespaces ({error:#}); trying a user namespace")),
        }
    } else {
        say("not root: no redirection to sidecars, so they run with INTERCEPTION_MODE: NONE, in a user namespace");
    }
    Err(enter_user_namespace())
}

/// Like [`prepare`], for tests: they cannot replace their process.
///
/// # Errors
/// When network namespaces cannot be made.
pub fn prepare_in_place(say: Say) -> Result<Interception> {
    if !rustix::process::geteuid().is_root() {
        bail!("root is needed to make network namespaces");
    }
    install_tools(say)?;
    remove_leftovers();
    try_namespace()?;
    Ok(rules::probe(say))
}

/// Starts this program once more as root of a user namespace. Returns only when that fails.
fn enter_user_namespace() -> anyhow::Error {
    let Ok(program) = std::env::current_exe() else { return anyhow!("cannot find out which program this is") };
    const NEEDED: &str =
        "neither root nor user namespaces are to be had, and the pods' network namespaces need one of them";
    const NAMESPACES: [&str; 4] = ["--user", "--map-root-user", "--mount", "--net"];
    // Tried first, since after the real thing nobody is left to explain.
    if let Err(error) = run(Command::new("unshare").args(NAMESPACES).arg("true")) {
        return error.context(NEEDED);
    }
    // `ip netns` keeps its names in /run, which is not ours outside.
    let script = r#"mount -t tmpfs tmpfs /run && exec "$0" "$@""#;
    let mut command = Command::new("unshare");
    command.args(NAMESPACES).args(["sh", "-c", script]).arg(program);
    command.args(std::env::args_os().skip(1)).env(INSIDE, "1");
    anyhow::Error::new(command.exec()).context(NEEDED)
}

fn has(tool: &str) -> bool {
    Command::new(tool).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Installs what is missing, where that is possible without asking.
fn install_tools(say: Say) -> Result<()> {
    let missing: Vec<&str> = [("ip", "iproute2"), ("iptables-restore", "iptables")]
        .into_iter()
        .filter(|(tool, _)| !has(tool))
        .map(|(_, package)| package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !has("apt-get") {
        say(&format!("missing: {}; sidecars may run without redirection", missing.join(", ")));
        return Ok(());
    }
    say(&format!("installing {} by apt-get, for the pods' network namespaces", missing.join(" and ")));
    let install = || {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "--yes", "--no-install-recommends"])
            .args(&missing);
        run(&mut command)
    };
    // A fresh image has no package lists.
    install().or_else(|_| run(Command::new("apt-get").arg("update")).and_then(|()| install())).context("apt-get failed")
}

fn try_namespace() -> Result<()> {
    Netns::new(&unique_prefix(), "probe").map(drop)
}

/// Distinguishes the namespaces of one mesh from all others on this machine.
pub fn unique_prefix() -> String {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static N_MESHES: AtomicUsize = AtomicUsize::new(0);
    format!("trysail-{}-{}", std::process::id(), N_MESHES.fetch_add(1, Ordering::Relaxed))
}

/// Removes namespaces and files of runs that were killed.
pub fn remove_leftovers() {
    let is_left = |name: &str| {
        let pid = name.strip_prefix("trysail-").and_then(|rest| rest.split('-').next());
        pid.is_some_and(|pid| pid.parse::<u32>().is_ok() && !std::path::Path::new("/proc").join(pid).exists())
    };
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_left(&name) {
            let _ = run(Command::new("ip").args(["netns", "delete", &name]));
        }
    }
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if is_left(&entry.file_name().to_string_lossy()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, and a thread that lives in it. Dropping it removes both.
pub struct Netns {
    name: String,
    /// Empty only while it is dropped.
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Netns {
    /// Makes the namespace `PREFIX-NAME`, with its loopback interface up.
    ///
    /// # Errors
    /// When that is not allowed.
    pub fn new(prefix: &str, name: &str) -> Result<Netns> {
        let name = format!("{prefix}-{name}");
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let (jobs, queue) = mpsc::channel::<Job>();
        // From here on dropping it cleans up.
        let mut made = Netns { name: name.clone(), jobs: Some(jobs), thread: None };
        let file = File::open(format!("/run/netns/{name}")).with_context(|| format!("cannot open namespace {name}"))?;
        let (ready, is_ready) = mpsc::channel();
        let live = move || {
            let entered = move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network));
            let _ = ready.send(entered);
            while let Ok(job) = queue.recv() {
                job();
            }
        };
        made.thread =
            Some(std::thread::Builder::new().name(name.clone()).spawn(live).context("cannot start a thread")?);
        is_ready
            .recv()
            .context("the namespace's thread died")?
            .with_context(|| format!("cannot enter namespace {name}"))?;
        made.ip(&["link set lo up".into()])?;
        Ok(made)
    }

    /// The name that `ip netns` knows it by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Does something in the namespace. Sockets and processes made there stay in it.
    ///
    /// # Panics
    /// When the closure did.
    pub fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let (answer, answered) = mpsc::channel();
        let job = Box::new(move || {
            let _ = answer.send(work());
        });
        let jobs = self.jobs.as_ref().expect("only dropping takes it");
        jobs.send(job).expect("the thread runs until the sender is dropped");
        answered.recv().expect("work in a network namespace panicked")
    }

    /// Runs commands of `ip` in it.
    ///
    /// # Errors
    /// With the words of `ip`.
    pub fn ip(&self, commands: &[String]) -> Result<()> {
        feed(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), &commands.join("\n"))
    }

    /// Loads rules of the firewall, as `iptables-restore` reads them.
    ///
    /// # Errors
    /// With the words of that program.
    pub fn filter(&self, rules: &str) -> Result<()> {
        rules::load(self, rules)
    }

    /// A listener on an address in it.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn listen(&self, ip: Ipv4Addr, port: u16) -> Result<tokio::net::TcpListener> {
        let bound = self.enter(move || TcpListener::bind((ip, port)));
        let listener = bound.with_context(|| format!("cannot listen on {ip}:{port} in {}", self.name))?;
        listener.set_nonblocking(true).context("cannot make a listener non-blocking")?;
        tokio::net::TcpListener::from_std(listener).context("cannot watch a listener")
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Without the sender the thread ends, and with it the processes that it started.
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = run(Command::new("ip").args(["netns", "delete", &self.name]));
    }
}

/// Runs a command with text on its standard input.
pub(crate) fn feed(command: &mut Command, input: &str) -> Result<()> {
    let name = command.get_program().to_string_lossy().into_owned();
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
    let mut child = child.with_context(|| format!("cannot run {name}"))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin
            .write_all(input.as_bytes())
            .and_then(|()| stdin.write_all(b"\n"))
            .with_context(|| format!("cannot talk to {name}"))?;
    }
    let output = child.wait_with_output().with_context(|| format!("cannot wait for {name}"))?;
    if !output.status.success() {
        bail!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The pods' common network.
pub struct Network {
    prefix: String,
    node: Netns,
    interception: Interception,
}

impl Network {
    /// A bridge in a namespace of its own.
    ///
    /// # Errors
    /// When that is not allowed.
    pub fn new(interception: Interception) -> Result<Network> {
        let prefix = unique_prefix();
        let node = Netns::new(&prefix, "node")?;
        node.ip(&[
            // An address of its own: else the bridge takes the lowest of its ports', which moves as pods join, and whoever
            // knows it by the old one talks into the void until neighbours are asked for again, half a minute later.
            format!("link add br0 address {BRIDGE_MAC} type bridge"),
            format!("address add {NODE_IP}/16 dev br0"),
            "link set br0 up".into(),
        ])?;
        Ok(Network { prefix, node, interception })
    }

    /// Where the bridge is; the control plane belongs there.
    pub fn node(&self) -> &Netns {
        &self.node
    }

    /// How traffic comes to the sidecars of its pods.
    pub fn interception(&self) -> Interception {
        self.interception
    }

    /// A name that no other mesh on this machine has.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// A namespace for a pod with this address. Without a sidecar nothing is redirected.
    ///
    /// # Errors
    /// When the address is taken.
    pub fn pod(&self, name: &str, ip: Ipv4Addr, sidecar: bool) -> Result<Netns> {
        let pod = Netns::new(&self.prefix, name)?;
        // Interface names are short, and addresses are unique.
        let [_, _, c, d] = ip.octets();
        let veth = format!("v{c}-{d}");
        self.node.ip(&[
            format!("link add {veth} type veth peer name eth0 netns {}", pod.name()),
            format!("link set {veth} master br0"),
            format!("link set {veth} up"),
        ])?;
        pod.ip(&[
            format!("address add {ip}/16 dev eth0"),
            "link set eth0 up".into(),
            // Service addresses need a route to be redirected at all.
            format!("route add default via {NODE_IP}"),
        ])?;
        if sidecar {
            rules::intercept(&pod, self.interception)?;
        }
        Ok(pod)
    }
}

/// Whether real Envoys can be run here; says why not.
pub fn or_skip(test: &str) -> Option<Interception> {
    match prepare_in_place(quiet) {
        Ok(interception) => Some(interception),
        Err(error) => {
            eprintln!("{test}: skipped: {error:#}");
            None
        }
    }
}
