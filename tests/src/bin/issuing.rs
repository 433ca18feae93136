//! How many certificates the authority issues, how long one takes, and what a flood of bad requests does to good ones: the
//! program itself over TLS, clients in closed loops. For measuring, not for CI:
//!
//! ```sh
//! cargo run --release -p trysail-tests --bin issuing
//! ```

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256};
use clap::Parser;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use tokio::net::{TcpSocket, TcpStream};
use tonic::transport::Channel;
use trysail_tests::agent::{self, Issuer, asking, signing_request_of, with_token};
use trysail_tests::replica::Replica;
use trysail_tests::sds::spiffe;
use trysail_tests::{aloud, control_plane};

#[derive(Parser)]
struct Options {
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Clients, each with a connection and an identity of its own, that ask for one certificate after the other.
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Clients of the flood, each with a connection of its own.
    #[arg(long, default_value_t = 8)]
    flood: usize,
    /// Requests that each client of the flood has under way.
    #[arg(long, default_value_t = 16)]
    at_once: usize,
}

#[tokio::main]
async fn main() -> Result<()> {
    let options = Options::parse();
    let binary = control_plane::binary(aloud)?;
    for kind in ["P-256", "RSA-2048"] {
        println!("{kind}: the crypto library alone signs {:.0} times a second on a core", alone(kind)?);
        let folder = tempfile::tempdir().context("no folder")?;
        if kind == "P-256" {
            plug(folder.path())?;
        }
        let issuer = Issuer::new()?;
        let mut server = Served::start(&binary, folder.path(), &issuer, "0")?;
        let measured = server.measure(&options, options.clients, &issuer).await?;
        println!("{kind}: {measured}");
        drop(server);
        if kind == "RSA-2048" {
            continue;
        }
        // With the limits that are in force when nobody says otherwise.
        for bad in [Bad::NoToken, Bad::Forged, Bad::NoRequest] {
            let mut server = Served::start(&binary, folder.path(), &issuer, "")?;
            let quiet = server.measure(&options, 2, &issuer).await?;
            let flood = server.flood(&options, bad, &issuer).await?;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let flooded = server.measure(&options, 2, &issuer).await?;
            let n_bad = flood.stop().await;
            let slower = 100.0 * (1.0 - flooded.per_second() / quiet.per_second());
            println!("flood of {bad:?}, {:.0} a second: without {quiet}; with {flooded}; {slower:.0} % slower", n_bad);
        }
    }
    Ok(())
}

/// Signatures of the crypto library, one after the other.
fn alone(kind: &str) -> Result<f64> {
    let (random, message) = (SystemRandom::new(), [7; 600]);
    let sign: Box<dyn Fn() -> Result<()>> = match kind {
        "P-256" => {
            let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).ok().context("no key")?;
            Box::new(move || key.sign(&random, &message).ok().context("not signed").map(drop))
        }
        _ => {
            let key = aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).ok().context("no key")?;
            let mut signature = vec![0; key.public_modulus_len()];
            signature.resize(key.public_modulus_len(), 0);
            Box::new(move || {
                key.sign(&RSA_PKCS1_SHA256, &random, &message, &mut signature.clone()).ok().context("not signed")
            })
        }
    };
    let (began, mut n) = (Instant::now(), 0u32);
    while began.elapsed() < Duration::from_secs(2) {
        sign()?;
        n += 1;
    }
    Ok(f64::from(n) / began.elapsed().as_secs_f64())
}

/// A key of P-256 as an operator plugs it in.
fn plug(folder: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.distinguished_name.push(DnType::OrganizationName, "measured");
    let key = KeyPair::generate().context("no key")?;
    let root = params.self_signed(&key).context("no root")?.pem();
    let files = [("ca-cert.pem", &root), ("root-cert.pem", &root), ("cert-chain.pem", &root)];
    let plugged = folder.join("plugged");
    std::fs::create_dir(&plugged).context("no folder")?;
    for (name, text) in files.into_iter().chain([("ca-key.pem", &key.serialize_pem())]) {
        std::fs::write(plugged.join(name), text).with_context(|| format!("cannot write {name}"))?;
    }
    Ok(())
}

/// The program.
struct Served {
    _replica: Replica,
    address: SocketAddr,
    root: String,
    pid: u32,
}

/// What good clients saw.
struct Measured {
    took: Vec<Duration>,
    lasted: Duration,
    /// CPU time of the control plane and its signer.
    busy: Duration,
}

impl Measured {
    fn per_second(&self) -> f64 {
        self.took.len() as f64 / self.lasted.as_secs_f64()
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let at = |share: f64| self.took[((self.took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        let (n, a_core) = (self.per_second(), self.took.len() as f64 / self.busy.as_secs_f64());
        write!(
            f,
            "{n:.0} certificates a second, {a_core:.0} per second and core, p50 {:.2} ms, p99 {:.2} ms",
            at(0.5),
            at(0.99)
        )
    }
}

impl Served {
    fn start(binary: &Path, folder: &Path, issuer: &Issuer, per_second: &str) -> Result<Served> {
        let config = folder.join("config");
        std::fs::create_dir_all(&config).context("no folder")?;
        let ca = folder.join("ca").display().to_string();
        let (config, plugged) = (config.display().to_string(), folder.join("plugged"));
        let (rule, root_ca) = (issuer.rule(), plugged.display().to_string());
        let environment = [
            ("JWT_RULE", rule.as_str()),
            ("TRYSAIL_CA_DIR", &ca),
            ("ROOT_CA_DIR", &root_ca),
            ("TRYSAIL_CA_REQUESTS_PER_SECOND", per_second),
            ("ISTIOD_CUSTOM_HOST", agent::SERVER_NAME),
        ];
        let args = ["--registries=", "--configDir", &config, "--log_output_level=default:error"];
        let mut replica = Replica::start(binary, &args, &environment)?;
        let address = replica.secure()?;
        let kept = [plugged.join("root-cert.pem"), folder.join("ca/ca-cert.pem")];
        let root = kept.iter().find_map(|file| std::fs::read_to_string(file).ok()).context("no root")?;
        let pid = replica.id();
        Ok(Served { _replica: replica, address, root, pid })
    }

    /// A connection from an address of the own machine.
    async fn connect(&self, from: [u8; 4]) -> Result<Channel> {
        let socket = TcpSocket::new_v4().context("no socket")?;
        socket.bind((from, 0).into()).context("no such address")?;
        let stream: TcpStream = socket.connect(self.address).await.context("cannot connect")?;
        agent::connect_over(stream, &self.root, None).await
    }

    async fn measure(&mut self, options: &Options, n_clients: usize, issuer: &Issuer) -> Result<Measured> {
        let (end, busy) = (Instant::now() + Duration::from_secs(options.seconds), busy(self.pid)?);
        let began = Instant::now();
        let mut clients = tokio::task::JoinSet::new();
        for n in 0..n_clients {
            let channel = self.connect([127, 0, 0, 1]).await?;
            // Of many, so that none of them asks for more than a caller may.
            let accounts = (0..IDENTITIES).map(|i| format!("good-{n}-{i}"));
            let tokens: Vec<String> = accounts.map(|account| issuer.token("load", &account)).collect::<Result<_>>()?;
            let (csr, _) = signing_request_of(&[&spiffe("load", "good")])?;
            clients.spawn(async move {
                let mut took = Vec::new();
                for token in tokens.iter().cycle().take_while(|_| Instant::now() < end) {
                    let began = Instant::now();
                    agent::create(&channel, with_token(asking(&csr, 3600, &[]), token)).await?;
                    took.push(began.elapsed());
                }
                Ok::<_, anyhow::Error>(took)
            });
        }
        let mut took = Vec::new();
        while let Some(done) = clients.join_next().await {
            took.extend(done.context("a client panicked")??);
        }
        took.sort();
        if took.is_empty() {
            bail!("nothing was issued");
        }
        let busy = self::busy(self.pid)?.saturating_sub(busy);
        Ok(Measured { took, lasted: began.elapsed(), busy })
    }

    async fn flood(&mut self, options: &Options, bad: Bad, issuer: &Issuer) -> Result<Flood> {
        let (stop, n) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..options.flood {
            let channel = self.connect([127, 0, 0, 2]).await?;
            for _ in 0..options.at_once {
                let (channel, stop, n) = (channel.clone(), stop.clone(), n.clone());
                let good = issuer.token("load", "bad")?;
                let token = match bad {
                    Bad::NoToken => String::new(),
                    Bad::Forged => Issuer::new()?.token("load", "bad")?,
                    Bad::NoRequest => good,
                };
                let (csr, _) = signing_request_of(&[])?;
                let csr = if matches!(bad, Bad::NoRequest) { "x".repeat(60_000) } else { csr };
                tasks.spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let answer = agent::create(&channel, with_token(asking(&csr, 60, &[]), &token)).await;
                        assert!(answer.is_err(), "a bad request was good");
                        n.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        }
        Ok(Flood { stop, n, began: Instant::now(), tasks })
    }
}

/// Identities of each client.
const IDENTITIES: usize = 400;

/// What is wrong with the requests of a flood.
#[derive(Clone, Copy, Debug)]
enum Bad {
    /// Nothing proves who asks.
    NoToken,
    /// Tokens of the issuer's name and another key.
    Forged,
    /// Good tokens, and 60 kB that are no request.
    NoRequest,
}

struct Flood {
    stop: Arc<AtomicBool>,
    n: Arc<AtomicUsize>,
    began: Instant,
    tasks: tokio::task::JoinSet<()>,
}

impl Flood {
    /// Ends it; its requests per second.
    async fn stop(mut self) -> f64 {
        self.stop.store(true, Ordering::Relaxed);
        let (n, lasted) = (self.n.load(Ordering::Relaxed), self.began.elapsed());
        while self.tasks.join_next().await.is_some() {}
        n as f64 / lasted.as_secs_f64()
    }
}

/// CPU time of a process and its children that run.
fn busy(pid: u32) -> Result<Duration> {
    let of = |pid: &str| -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).context("the control plane is gone")?;
    let children = tasks.flatten().filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<String> =
        children.flat_map(|text| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).collect();
    let ticks: u64 = children.iter().map(String::as_str).chain([pid.to_string().as_str()]).filter_map(of).sum();
    Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
}
