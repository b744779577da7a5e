//! A zTOC whose entries are looked at where they lie.

use super::decode::{Frame, Owners, entry};
use crate::error::DecodeError;
use crate::toc::{Member, Walk};
use crate::wire::{Place, Reader};

/// The table of contents of an encoded zTOC. Its entries are read and checked one after another and never held: of many
/// files, touching the memory for them takes longer than reading them.
#[derive(Debug)]
pub struct LeanToc<'a> {
    bytes: &'a [u8],
    entries: Place,
    /// Bytes of the tar.
    size: u64,
    /// The entries' numbers in tar order, if that is not the zTOC's.
    order: Option<Vec<u32>>,
}

impl<'a> LeanToc<'a> {
    pub(super) fn new(bytes: &'a [u8], frame: &Frame<'_>) -> Self {
        Self {
            bytes,
            entries: frame.entries,
            size: frame.spans.uncompressed_size(),
            order: None,
        }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All entries in tar order, without the names of users and groups, which a file system has no use for.
    ///
    /// # Errors
    ///
    /// As [`crate::Ztoc::decode`] at the entry that is wrong, and [`DecodeError::Disorder`] at the first that lies in
    /// front of the one before it: [`Self::sort`] helps.
    #[inline]
    pub fn members(&self) -> impl Iterator<Item = Result<Member<'a>, DecodeError>> {
        let reader = Reader::new(self.bytes);
        let mut walk = Walk::new(self.size);
        (0..self.len()).map(move |number| {
            let order = self.order.as_ref();
            let index = order.map_or(number, |order| order[number] as usize);
            let table = reader.element(self.entries, index)?;
            walk.member(entry(&table, number, Owners::LeftOut)?)
        })
    }

    /// Checks all entries.
    ///
    /// # Errors
    ///
    /// As [`crate::Ztoc::decode`].
    pub fn check(&mut self) -> Result<(), DecodeError> {
        self.in_any_order(|toc| toc.members().try_for_each(|member| member.map(drop)))
    }

    /// What `read` makes of [`Self::members`]; if the zTOC has them in another order than the tar, they are sorted and read again.
    ///
    /// # Errors
    ///
    /// Those of `read`, and as [`Self::sort`].
    pub fn in_any_order<T>(
        &mut self,
        read: impl Fn(&Self) -> Result<T, DecodeError>,
    ) -> Result<T, DecodeError> {
        match read(self) {
            Err(DecodeError::Disorder) => {
                self.sort()?;
                read(self)
            }
            read => read,
        }
    }

    /// Has [`Self::members`] come in tar order, whatever the zTOC's is.
    ///
    /// # Errors
    ///
    /// As [`crate::Ztoc::decode`].
    pub fn sort(&mut self) -> Result<(), DecodeError> {
        let reader = Reader::new(self.bytes);
        let numbers = 0..u32::try_from(self.len()).unwrap_or(u32::MAX);
        let offset = |number: u32| {
            let table = reader.element(self.entries, number as usize)?;
            Ok((table.i64(2)?, number))
        };
        let mut order = numbers
            .map(offset)
            .collect::<Result<Vec<_>, DecodeError>>()?;
        order.sort_unstable();
        self.order = Some(order.into_iter().map(|(_, number)| number).collect());
        Ok(())
    }
}
