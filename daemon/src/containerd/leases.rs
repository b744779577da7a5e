//! Leases: what protects content and snapshots while no image refers to them yet.

use std::collections::HashMap;
use std::time::Duration;

use proto::containerd::services::leases::v1 as api;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Containerd, ContainerdError};

/// containerd deletes a lease by itself after this: only a process that died leaves one behind.
const EXPIRY: Duration = Duration::from_secs(24 * 60 * 60);

/// A lease. Ends with [`Lease::release`]; one that is dropped without expires a day later.
#[derive(Debug)]
pub struct Lease {
    id: String,
    containerd: Containerd,
}

impl Containerd {
    /// Makes a lease. Use [`Lease::client`] for what is to be protected.
    pub async fn lease(&self) -> Result<Lease, ContainerdError> {
        let expiry = (OffsetDateTime::now_utc() + EXPIRY)
            .format(&Rfc3339)
            .map_err(|error| self.malformed("create a lease", error.to_string()))?;
        let request = api::CreateRequest {
            id: String::new(),
            labels: HashMap::from([("containerd.io/gc.expire".to_owned(), expiry)]),
        };
        let answer = api::leases_client::LeasesClient::new(self.channel.clone())
            .create(self.request(request))
            .await
            .map_err(self.failed("create a lease"))?;
        let id = answer.into_inner().lease.unwrap_or_default().id;
        let value = id
            .parse()
            .map_err(|_| self.malformed("create a lease", format!("lease id {id:?}")))?;
        let mut containerd = self.clone();
        containerd.lease = Some(value);
        Ok(Lease { id, containerd })
    }
}

impl Lease {
    /// The client whose requests are under this lease.
    pub fn client(&self) -> &Containerd {
        &self.containerd
    }

    /// Ends the lease. What nothing else refers to by now may be collected.
    pub async fn release(self) -> Result<(), ContainerdError> {
        let request = api::DeleteRequest {
            id: self.id.clone(),
            sync: false,
        };
        api::leases_client::LeasesClient::new(self.containerd.channel.clone())
            .delete(self.containerd.request(request))
            .await
            .map_err(self.containerd.failed(format!("delete lease {}", self.id)))?;
        Ok(())
    }
}
