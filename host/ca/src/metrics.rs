//! What the authority counts, under istiod's names.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{Gauge, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};
use tonic::Code;

use crate::authority::PublicBundle;
use crate::x509::Certificate;

/// Counters; clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: IntCounter,
    unauthenticated: IntCounter,
    unreadable: IntCounter,
    failed: IntCounterVec,
    issued: IntCounter,
    root_expiry: Gauge,
    root_expiry_seconds: Gauge,
    chain_expiry: Gauge,
    chain_expiry_seconds: Gauge,
    calls: Calls,
}

impl Metrics {
    /// Shown by a registry.
    ///
    /// # Errors
    /// When it has such names already.
    pub fn register(registry: &Registry) -> Result<Metrics, prometheus::Error> {
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = Gauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let failed = IntCounterVec::new(
            Opts::new("citadel_server_csr_sign_err_count", "Requests that could not be signed, by kind of error."),
            &["error"],
        )?;
        registry.register(Box::new(failed.clone()))?;
        Ok(Metrics {
            requests: counter("citadel_server_csr_count", "Certificate signing requests.")?,
            unauthenticated: counter("citadel_server_authentication_failure_count", "Requests of unknown callers.")?,
            unreadable: counter("citadel_server_csr_parsing_err_count", "Requests that could not be read.")?,
            failed,
            issued: counter("citadel_server_success_cert_issuance_count", "Certificates issued.")?,
            root_expiry: gauge("citadel_server_root_cert_expiry_timestamp", "End of the root, seconds since 1970.")?,
            root_expiry_seconds: gauge("citadel_server_root_cert_expiry_seconds", "Seconds until the root ends.")?,
            chain_expiry: gauge("citadel_server_cert_chain_expiry_timestamp", "End of the signing certificate.")?,
            chain_expiry_seconds: gauge("citadel_server_cert_chain_expiry_seconds", "Seconds until that.")?,
            calls: Calls::register(registry)?,
        })
    }

    /// A call of the certificate service has come to its end.
    pub(crate) fn called(&self, code: Code, took: Duration) {
        self.calls.count(code, took);
    }

    pub(crate) fn requested(&self) {
        self.requests.inc();
    }

    pub(crate) fn unauthenticated(&self) {
        self.unauthenticated.inc();
    }

    pub(crate) fn unreadable(&self) {
        self.unreadable.inc();
    }

    pub(crate) fn failed(&self, kind: &str) {
        self.failed.with_label_values(&[kind]).inc();
    }

    pub(crate) fn issued(&self) {
        self.issued.inc();
    }

    /// Shows when the certificates of a bundle end.
    pub fn expiry(&self, bundle: &PublicBundle, now: SystemTime) {
        let seconds = |pem: &str| {
            let first = Certificate::all_from_pem(pem.as_bytes()).ok()?.into_iter().next()?;
            Some(first.not_after().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64())
        };
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        if let Some(end) = seconds(&bundle.root_pem) {
            self.root_expiry.set(end);
            self.root_expiry_seconds.set(end - now);
        }
        // As with istiod, only when there is a chain.
        if let Some(end) = seconds(&bundle.signing).filter(|_| !bundle.chain.is_empty()) {
            self.chain_expiry.set(end);
            self.chain_expiry_seconds.set(end - now);
        }
    }
}

/// Calls of the certificate service, under the names of Go's gRPC middleware.
#[derive(Clone, Debug)]
struct Calls {
    started: IntCounterVec,
    received: IntCounterVec,
    handled: IntCounterVec,
    sent: IntCounterVec,
    seconds: HistogramVec,
}

/// Method, service and kind of the one unary call that there is.
const CALL: [&str; 3] = ["CreateCertificate", "istio.v1.auth.IstioCertificateService", "unary"];
const CALL_LABELS: [&str; 3] = ["grpc_method", "grpc_service", "grpc_type"];
/// Upper bounds, in seconds: Go's defaults.
const CALL_SECONDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

impl Calls {
    fn register(registry: &Registry) -> Result<Calls, prometheus::Error> {
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(counter.clone()))?;
            Ok::<_, prometheus::Error>(counter)
        };
        let [method, service, kind] = CALL_LABELS;
        let opts = HistogramOpts::new("grpc_server_handling_seconds", "Seconds that calls took.");
        let seconds = HistogramVec::new(opts.buckets(CALL_SECONDS.to_vec()), &CALL_LABELS)?;
        registry.register(Box::new(seconds.clone()))?;
        Ok(Calls {
            started: counter("grpc_server_started_total", "Calls begun.", &CALL_LABELS)?,
            received: counter("grpc_server_msg_received_total", "Messages received.", &CALL_LABELS)?,
            handled: counter("grpc_server_handled_total", "Calls ended.", &["grpc_code", method, service, kind])?,
            sent: counter("grpc_server_msg_sent_total", "Messages sent.", &CALL_LABELS)?,
            seconds,
        })
    }

    fn count(&self, code: Code, took: Duration) {
        let [method, service, kind] = CALL;
        // Go spells one of them otherwise.
        let name = if code == Code::Ok { "OK".to_owned() } else { format!("{code:?}") };
        self.started.with_label_values(&CALL).inc();
        self.received.with_label_values(&CALL).inc();
        self.handled.with_label_values(&[name.as_str(), method, service, kind]).inc();
        self.sent.with_label_values(&CALL).inc_by(u64::from(code == Code::Ok));
        self.seconds.with_label_values(&CALL).observe(took.as_secs_f64());
    }
}
