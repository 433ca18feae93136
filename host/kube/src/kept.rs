//! A secret that is ours to write.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};

/// The API server did not do it; the text says why.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct KeptError(#[from] Box<kube::Error>);

/// The parts of a secret by name, and its version.
pub type Kept = (BTreeMap<String, Vec<u8>>, String);

/// One secret, by name.
pub struct KeptSecret {
    api: Api<Secret>,
    name: String,
    kind: String,
}

impl KeptSecret {
    /// A secret of that type in a namespace, whether or not it is there.
    pub fn new(client: Client, namespace: &str, name: &str, kind: &str) -> KeptSecret {
        KeptSecret { api: Api::namespaced(client, namespace), name: name.to_owned(), kind: kind.to_owned() }
    }

    /// What is there.
    ///
    /// # Errors
    /// Without an answer.
    pub async fn load(&self) -> Result<Option<Kept>, KeptError> {
        let found = self.api.get_opt(&self.name).await.map_err(Box::new)?;
        Ok(found.map(|secret| {
            let parts = secret.data.unwrap_or_default().into_iter().map(|(name, ByteString(bytes))| (name, bytes));
            (parts.collect(), secret.metadata.resource_version.unwrap_or_default())
        }))
    }

    /// Makes it. False when there is one already.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn create(&self, parts: &BTreeMap<String, Vec<u8>>) -> Result<bool, KeptError> {
        match self.api.create(&PostParams::default(), &self.secret(parts)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(Box::new(error).into()),
        }
    }

    /// Replaces the parts of that version.
    ///
    /// # Errors
    /// When the API server refuses: also when somebody else wrote it since.
    pub async fn replace(&self, parts: &BTreeMap<String, Vec<u8>>, version: &str) -> Result<(), KeptError> {
        // What else is in it (labels, owners, the type) stays.
        let mut secret = match self.api.get_opt(&self.name).await.map_err(Box::new)? {
            Some(found) => Secret { data: self.secret(parts).data, ..found },
            None => self.secret(parts),
        };
        secret.metadata.resource_version = Some(version.to_owned());
        self.api.replace(&self.name, &PostParams::default(), &secret).await.map_err(Box::new)?;
        Ok(())
    }

    fn secret(&self, parts: &BTreeMap<String, Vec<u8>>) -> Secret {
        let data = parts.iter().map(|(name, bytes)| (name.clone(), ByteString(bytes.clone())));
        Secret {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            data: Some(data.collect()),
            type_: Some(self.kind.clone()),
            ..Secret::default()
        }
    }
}
