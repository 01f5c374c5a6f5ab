//! Does a file hold as many bytes as its container claims? Asked before decoding, because decoders are lenient: a JPEG cut
//! short decodes to grey, and a WebP chunk may claim four gigabytes.
//!
//! Pure, on bytes. PNG needs no check of its own: its decoder verifies lengths and checksums.

use crate::Why;

/// Refuses a JPEG or WebP that ends early; every other content passes.
pub(crate) fn check(bytes: &[u8]) -> Result<(), Why> {
    let whole = match bytes {
        [0xff, 0xd8, rest @ ..] => jpeg_is_whole(rest),
        [b'R', b'I', b'F', b'F', a, b, c, d, b'W', b'E', b'B', b'P', ..] => {
            let end = 8 + u32::from_le_bytes([*a, *b, *c, *d]) as usize;
            bytes.get(12..end).is_some_and(webp_is_whole)
        }
        _ => true,
    };
    if whole { Ok(()) } else { Err(Why::Truncated) }
}

/// Steps over the segments to the first scan, then looks for the end marker, which scans cannot contain. An end marker of
/// an embedded thumbnail lies inside a segment and does not count.
fn jpeg_is_whole(mut rest: &[u8]) -> bool {
    loop {
        match rest {
            [0xff, 0xff, ..] => rest = &rest[1..],
            [0xff, 0xda, scans @ ..] => return scans.windows(2).any(|pair| pair == [0xff, 0xd9]),
            [0xff, 0x01 | 0xd0..=0xd7, after @ ..] => rest = after,
            [0xff, _, high, low, ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                let Some(after) = rest.get(2 + length.max(2)..) else { return false };
                rest = after;
            }
            // Not a marker where one belongs: for the decoder to judge, unless nothing is left to judge.
            _ => return rest.len() >= 4,
        }
    }
}

/// Every chunk ends within the file.
fn webp_is_whole(mut rest: &[u8]) -> bool {
    while let [_, _, _, _, a, b, c, d, after @ ..] = rest {
        let length = u32::from_le_bytes([*a, *b, *c, *d]) as usize;
        if length > after.len() {
            return false;
        }
        rest = &after[(length + length % 2).min(after.len())..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jpeg_ends_with_the_end_marker_of_its_own_scan() {
        // SOI, APP1 whose payload holds a thumbnail's end marker, SOS, data, EOI.
        let whole = [0xff, 0xd8, 0xff, 0xe1, 0, 4, 0xff, 0xd9, 0xff, 0xda, 0, 2, 7, 7, 0xff, 0, 7, 0xff, 0xd9];
        assert_eq!(check(&whole), Ok(()));
        for cut in 2..whole.len() {
            assert_eq!(check(&whole[..cut]), Err(Why::Truncated), "{cut}");
        }
        assert_eq!(check(&[&whole[..], b"trailing"].concat()), Ok(()));
    }

    #[test]
    fn a_webp_chunk_may_not_claim_more_than_the_file_has() {
        let mut webp = b"RIFF\x1a\0\0\0WEBPVP8 \x04\0\0\0abcdEXIF\x02\0\0\0".to_vec();
        assert_eq!(check(&webp), Err(Why::Truncated));
        webp.extend(b"ef");
        assert_eq!(check(&webp), Ok(()));
        webp[31] = 0xff;
        assert_eq!(check(&webp), Err(Why::Truncated));
    }
}
