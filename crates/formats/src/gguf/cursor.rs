//! Reading little-endian numbers and strings off a slice, never past its end.

/// A place in the header; every failure is a reason in words.
pub(super) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

pub(super) type Parsed<T> = std::result::Result<T, String>;

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, len: usize, what: &str) -> Parsed<&'a [u8]> {
        if len > self.left() {
            return Err(format!(
                "{what} at byte {} takes {len} bytes, but only {} are left",
                self.at,
                self.left()
            ));
        }
        let taken = &self.bytes[self.at..][..len];
        self.at += len;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, what: &str) -> Parsed<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Parsed<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// A 64-bit number that must also be a size on this machine.
    pub(super) fn size(&mut self, what: &str) -> Parsed<usize> {
        let at = self.at;
        let size = u64::from_le_bytes(self.array(what)?);
        usize::try_from(size).map_err(|_| format!("{what} at byte {at} is {size}, beyond any file"))
    }

    /// A number of items of at least `item_bytes` each, refused before anything is reserved for items that
    /// the rest of the file cannot hold.
    pub(super) fn count(&mut self, item_bytes: usize, what: &str) -> Parsed<usize> {
        let at = self.at;
        let count = self.size(what)?;
        if count > self.left() / item_bytes {
            return Err(format!(
                "{what} at byte {at} is {count}, but the {} bytes left cannot hold as many",
                self.left()
            ));
        }
        Ok(count)
    }

    pub(super) fn string(&mut self, what: &str) -> Parsed<String> {
        let len = self.size(what)?;
        let at = self.at;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes)
            .map(str::to_owned)
            .map_err(|error| format!("{what} at byte {at} is not UTF-8: {error}"))
    }
}
