//! What clients have set for the whole cluster: who is taken for the leader, and whether somebody wants to go back to another
//! version. Neither changes what a member does.

use bytes::Bytes;
use parking_lot::RwLock;

use super::command::{CommandReply, Reply};
use super::{Failure, Writer};
use crate::error::{Error, StoreError};
use crate::storage::schema::Table;
use crate::storage::schema::setting::Setting;
use crate::time::Now;
use crate::types::MemberId;

/// The settings, shared by the writer and readers.
#[derive(Debug, Default)]
pub struct Settings {
    set: RwLock<(Option<MemberId>, Option<String>)>,
}

impl Settings {
    /// Who is to be taken for the leader, while it lives.
    pub fn leader(&self) -> Option<MemberId> {
        self.set.read().0
    }

    /// The version that somebody wants to go back to.
    pub fn downgrade(&self) -> Option<String> {
        self.set.read().1.clone()
    }

    /// Takes over what a record says; `None` if it is gone.
    pub(super) fn show(&self, key: &Bytes, value: Option<&Bytes>) -> Result<(), StoreError> {
        let setting = value.map(|value| Setting::decode(key, value)).transpose()?;
        let mut set = self.set.write();
        match setting {
            Some(Setting::Leader(member)) => set.0 = Some(member),
            Some(Setting::Downgrade(version)) => set.1 = Some(version),
            None if *key == Setting::LEADER => set.0 = None,
            None => set.1 = None,
        }
        Ok(())
    }
}

impl Writer {
    pub(super) fn set_leader(
        &mut self,
        member: MemberId,
        now: Now,
    ) -> Result<Reply<CommandReply>, Failure> {
        let stamp = self.begin_entry(now);
        if self.settings.leader() != Some(member) {
            let (key, value) = Setting::Leader(member).encode();
            self.put_record((Table::Setting, key), value, stamp, now)?;
        }
        Ok(self.end_entry(CommandReply::Setting))
    }

    pub(super) fn set_downgrade(
        &mut self,
        version: Option<String>,
        now: Now,
    ) -> Result<Reply<CommandReply>, Failure> {
        let is_under_way = self.settings.downgrade().is_some();
        if version.is_some() && is_under_way {
            return Err(Error::DowngradeInProcess.into());
        }
        let stamp = self.begin_entry(now);
        match version {
            Some(version) => {
                let (key, value) = Setting::Downgrade(version).encode();
                self.put_record((Table::Setting, key), value, stamp, now)?;
            }
            None if is_under_way => {
                self.remove_record((Table::Setting, Setting::DOWNGRADE), stamp, now)?;
            }
            None => {}
        }
        Ok(self.end_entry(CommandReply::Setting))
    }
}
