//! What a cluster's API server is asked about callers: whose token, and may its owner read secrets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::async_trait;
use trysail_ca::authenticate::{ReviewError, TokenReview};
use trysail_ca::sds::Access;
use trysail_kube::{Client, Reviews};
use trysail_model::Identity;
use trysail_model::identity::Review;

/// Reviews tokens of our own cluster.
pub struct Tokens {
    /// Who is asked.
    pub reviews: Reviews,
    /// Name of the cluster.
    pub cluster: String,
}

#[async_trait]
impl TokenReview for Tokens {
    async fn review(&self, cluster: &str, token: &str, audiences: &[String]) -> Result<Review, ReviewError> {
        if cluster != self.cluster {
            return Err(ReviewError::Cluster(cluster.to_owned()));
        }
        let review = self.reviews.token(token, audiences).await;
        review.map_err(|error| ReviewError::Failed(format!("{:#}", anyhow::Error::new(error))))
    }
}

/// An answer is asked for again after so long, as in istiod.
const FRESH: Duration = Duration::from_secs(60);
/// An answer that cannot be had again is good for so long.
const GOOD: Duration = Duration::from_secs(600);
/// After a failure nothing is asked for so long.
const PAUSE: Duration = Duration::from_secs(1);

type Account = (Arc<str>, Arc<str>);

/// Who may read secrets, as the API server says. Streams do not wait for it: who is not known yet may not, and is served once
/// the answer is there.
pub struct Reviewed {
    known: Arc<Mutex<BTreeMap<Account, Known>>>,
    asked: Arc<Mutex<BTreeSet<Account>>>,
    asked_tx: mpsc::UnboundedSender<Account>,
}

#[derive(Clone, Copy)]
struct Known {
    may: bool,
    at: Instant,
}

impl Reviewed {
    /// Asks a cluster; `moved` is called when an answer is another than before.
    pub fn new(client: Client, moved: impl Fn() + Send + 'static) -> Reviewed {
        let (asked_tx, mut asked_rx) = mpsc::unbounded_channel::<Account>();
        let (known, asked) = (Arc::new(Mutex::new(BTreeMap::new())), Arc::new(Mutex::new(BTreeSet::new())));
        let reviewed = Reviewed { known: known.clone(), asked: asked.clone(), asked_tx };
        tokio::spawn(async move {
            let reviews = Reviews(client);
            while let Some(account) = asked_rx.recv().await {
                let answer = reviews.may_list_secrets(&account.0, &account.1).await;
                asked.lock().remove(&account);
                match answer {
                    Ok(may) => {
                        let before: Option<Known> = known.lock().insert(account, Known { may, at: Instant::now() });
                        if before.is_some_and(|before| before.may) != may {
                            moved();
                        }
                    }
                    Err(error) => {
                        let error = anyhow::Error::new(error);
                        tracing::warn!(
                            namespace = &*account.0,
                            account = &*account.1,
                            "may it read secrets? {error:#}"
                        );
                        tokio::time::sleep(PAUSE).await;
                        moved();
                    }
                }
            }
        });
        reviewed
    }
}

impl Access for Reviewed {
    fn may_read_secrets(&self, identity: &Identity) -> bool {
        let account = (Arc::from(&*identity.namespace), Arc::from(&*identity.service_account));
        let known = self.known.lock().get(&account).copied();
        if known.is_none_or(|known| known.at.elapsed() > FRESH) && self.asked.lock().insert(account.clone()) {
            // The task lasts as long as the process.
            let _ = self.asked_tx.send(account);
        }
        known.is_some_and(|known| known.may && known.at.elapsed() < GOOD)
    }
}
