//! A replica of the control plane on loopback: the `trysail` binary with ports of its own.

use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;

/// A running replica. Dropping it kills it.
pub struct Replica {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    /// Health and debug pages.
    pub http: SocketAddr,
    /// Metrics.
    pub monitoring: SocketAddr,
}

impl Drop for Replica {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How long a replica may take for whatever it has to do.
const PATIENCE: Duration = Duration::from_secs(90);

impl Replica {
    /// Starts a replica whose stages are native code; it answers for its health, and need not be ready.
    ///
    /// # Errors
    /// When it ends at once.
    pub fn start(binary: &Path, args: &[&str], environment: &[(&str, &str)]) -> Result<Replica> {
        let all: Vec<&str> = ["--native"].iter().chain(args).copied().collect();
        Replica::sandboxed(binary, &all, environment)
    }

    /// Starts a replica that can have plugins: its stages are sandboxed components.
    ///
    /// # Errors
    /// When it ends at once.
    pub fn sandboxed(binary: &Path, args: &[&str], environment: &[(&str, &str)]) -> Result<Replica> {
        let mut command = Command::new(binary);
        command.arg("discovery").args(args);
        for flag in ["--grpcAddr", "--httpAddr", "--monitoringAddr", "--secureGRPCAddr"] {
            if !args.iter().any(|arg| arg.starts_with(flag)) {
                command.args([flag, "127.0.0.1:0"]);
            }
        }
        command.env("TRYSAIL_CA_DIR", "memory").envs(environment.iter().copied());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start the control plane")?;
        let lines = Arc::new(Mutex::new(Vec::new()));
        follow(child.stdout.take(), lines.clone());
        follow(child.stderr.take(), lines.clone());
        let unknown = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut started = Replica { child, lines, http: unknown, monitoring: unknown };
        let line = started.line("health on ")?;
        started.http = address(&line, "health on ")?;
        started.monitoring = address(&line, "metrics on ")?;
        Ok(started)
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it printed.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().map(|lines| lines.clone()).unwrap_or_default()
    }

    /// Waits for a line that contains a text.
    ///
    /// # Errors
    /// When it ends before, or does not say it; with what it printed.
    pub fn line(&mut self, text: &str) -> Result<String> {
        let start = Instant::now();
        loop {
            if let Some(line) = self.lines().into_iter().find(|line| line.contains(text)) {
                return Ok(line);
            }
            if let Some(status) = self.child.try_wait().context("cannot ask for the control plane")? {
                bail!("the control plane ended ({status}):\n{}", self.lines().join("\n"));
            }
            if start.elapsed() > PATIENCE {
                bail!("the control plane did not say {text:?}:\n{}", self.lines().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it listens, and says where its plaintext xDS is.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn xds(&mut self) -> Result<SocketAddr> {
        let line = self.line("xDS on ")?;
        address(&line, "xDS on ")
    }

    /// Waits until it listens, and says where its xDS over TLS is.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn secure(&mut self) -> Result<SocketAddr> {
        let line = self.line("over TLS on ")?;
        address(&line, "over TLS on ")
    }

    /// Kills it, as the kernel does that ran out of memory.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks it to stop, as kubelet does.
    ///
    /// # Errors
    /// When there is nobody to ask.
    pub fn terminate(&self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw).context("no process")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).context("cannot ask it to stop")
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn ended(&mut self, patience: Duration) -> Result<Duration> {
        let start = Instant::now();
        while self.child.try_wait().context("cannot ask for the control plane")?.is_none() {
            if start.elapsed() > patience {
                bail!("it did not end within {patience:?}:\n{}", self.lines().join("\n"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(start.elapsed())
    }

    /// A page's status and text.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn page(address: SocketAddr, path: &str) -> Result<(u16, String)> {
        let stream = tokio::net::TcpStream::connect(address).await.context("nobody listens")?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.context("no HTTP")?;
        tokio::spawn(connection);
        let request =
            Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new()).context("a request")?;
        let response = sender.send_request(request).await.context("no answer")?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.context("half an answer")?.to_bytes();
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }

    /// Waits until it is ready.
    ///
    /// # Errors
    /// When that takes too long; with what it says is missing.
    pub async fn ready(&mut self) -> Result<()> {
        let start = Instant::now();
        loop {
            let said = Replica::page(self.http, "/ready").await?;
            if said.0 == 200 {
                return Ok(());
            }
            if start.elapsed() > PATIENCE {
                bail!("not ready: {}\n{}", said.1, self.lines().join("\n"));
            }
            tokio::time::sleep(Duration::from_millis(30)).await;
        }
    }
}

fn address(line: &str, before: &str) -> Result<SocketAddr> {
    let (_, rest) = line.split_once(before).with_context(|| format!("no {before:?} in {line:?}"))?;
    rest.split([',', ' ']).next().unwrap_or_default().parse().with_context(|| format!("no address in {line:?}"))
}

fn follow(stream: Option<impl Read + Send + 'static>, lines: Arc<Mutex<Vec<String>>>) {
    let Some(stream) = stream else { return };
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(std::result::Result::ok) {
            if let Ok(mut lines) = lines.lock() {
                lines.push(line);
            }
        }
    });
}
