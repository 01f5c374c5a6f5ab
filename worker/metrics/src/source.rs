//! Where a metric's images come from.

/// What a source says when an image cannot be read.
pub type ReadError = Box<dyn std::error::Error + Send + Sync>;

/// A set of RGB images of one size, read from any number of threads. Whoever trains with mirrored images gives mirrored
/// ones here too.
pub trait ImageSource: Sync {
    /// Images in the set.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Writes image `index` into `out`, CHW bytes: the same bytes whenever it is asked.
    ///
    /// # Errors
    /// Whatever keeps the image from being read; it ends the metric.
    fn read(&self, index: usize, out: &mut [u8]) -> Result<(), ReadError>;
}

/// Some images of another source, in a given order: one half of a data set, say.
pub struct Subset<'a> {
    /// The whole.
    pub source: &'a dyn ImageSource,
    /// Indices into it.
    pub indices: Vec<usize>,
}

impl ImageSource for Subset<'_> {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn read(&self, index: usize, out: &mut [u8]) -> Result<(), ReadError> {
        let inner = *self.indices.get(index).ok_or("no such image in the subset")?;
        self.source.read(inner, out)
    }
}
