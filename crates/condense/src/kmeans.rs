//! k-means by Lloyd's iterations from a k-means++ start, with distances as matrix products.

use std::collections::HashSet;

use candle_core::{Result, bail};
use dcu_artifact::Array;
use dcu_nn::matrix::{Matrix, product};
use dcu_nn::rng::Stream;

const MOST_ITERATIONS: usize = 300;
/// The centres have settled when their squared shift falls below this share of the features' mean variance.
const TOLERANCE: f64 = 1e-4;

/// A clustering of points.
#[derive(Debug, Clone, PartialEq)]
pub struct Clustering {
    /// Cluster of each point; clusters are numbered by their first point, and none is empty.
    pub cluster: Vec<usize>,
    /// Mean of each cluster, [K, D].
    pub centroids: Array<f32>,
    /// Sum of the squared distances of all points to their centroid.
    pub inertia: f64,
}

/// The number of distinct rows.
#[must_use]
pub fn distinct_rows(points: &Array<f32>) -> usize {
    (0..points.rows()).map(|row| points.row(row).iter().map(|value| value.to_bits()).collect::<Vec<_>>()).collect::<HashSet<_>>().len()
}

/// The first row of `points` that no distance can be taken to: it holds values that are not finite, or so large that their squares are not.
#[must_use]
pub fn first_unusable_row(points: &Array<f32>) -> Option<usize> {
    squared_norms(points).into_iter().position(|norm| !is_usable(norm))
}

/// Whether neither this squared norm nor a squared distance to a point with another such norm is too large for f32.
fn is_usable(norm: f32) -> bool {
    norm <= f32::MAX / 8.0
}

/// Divides `points` [N, D] into `k` clusters. A cluster that empties is moved to the point that lies farthest from its centre.
///
/// # Errors
/// When there are fewer than `k` points, or one of them is not finite.
pub fn cluster(points: &Array<f32>, k: usize, stream: &mut Stream) -> Result<Clustering> {
    if k == 0 || points.rows() < k || points.row_len() == 0 {
        bail!("{} points of {} values cannot be divided into {k} clusters", points.rows(), points.row_len());
    }
    let norms = squared_norms(points);
    if let Some(row) = norms.iter().position(|&norm| !is_usable(norm)) {
        bail!("point {row} is not finite, or too far away for a distance: its squared norm is {}", norms[row]);
    }
    let mut centroids = plus_plus(points, &norms, k, stream);
    let threshold = TOLERANCE * mean_variance(points);
    let mut assignment = Assignment::nearest(points, &norms, &centroids);
    for _ in 0..MOST_ITERATIONS {
        assignment.fill_empty(k);
        let moved = means(points, &assignment.cluster, k);
        let shift: f64 = moved.data.iter().zip(&centroids.data).map(|(new, old)| f64::from(new - old).powi(2)).sum();
        centroids = moved;
        let next = Assignment::nearest(points, &norms, &centroids);
        let settled = shift <= threshold || next.cluster == assignment.cluster;
        assignment = next;
        if settled {
            break;
        }
    }
    assignment.fill_empty(k);
    Ok(finish(points, &assignment.cluster, k))
}

/// The nearest centre of each point, and the squared distance to it.
struct Assignment {
    cluster: Vec<usize>,
    distance: Vec<f32>,
}

impl Assignment {
    fn nearest(points: &Array<f32>, norms: &[f32], centroids: &Array<f32>) -> Self {
        let k = centroids.rows();
        let distances = squared_distances(points, norms, centroids);
        let nearest = distances.chunks_exact(k).map(|row| {
            let mut best = 0;
            for (index, distance) in row.iter().enumerate() {
                if *distance < row[best] {
                    best = index;
                }
            }
            (best, row[best])
        });
        let (cluster, distance) = nearest.unzip();
        Self { cluster, distance }
    }

    /// Gives each empty cluster the point that lies farthest from its centre, among those that are not alone.
    fn fill_empty(&mut self, k: usize) {
        let mut sizes = vec![0_usize; k];
        self.cluster.iter().for_each(|&cluster| sizes[cluster] += 1);
        for empty in 0..k {
            if sizes[empty] > 0 {
                continue;
            }
            let candidates = (0..self.cluster.len()).filter(|&point| sizes[self.cluster[point]] > 1);
            let farthest = candidates.fold(None, |best: Option<usize>, point| match best {
                Some(best) if self.distance[best] >= self.distance[point] => Some(best),
                _ => Some(point),
            });
            let point = farthest.expect("there are at least as many points as clusters");
            sizes[self.cluster[point]] -= 1;
            sizes[empty] = 1;
            self.cluster[point] = empty;
            self.distance[point] = 0.0;
        }
    }
}

/// Greedy k-means++ (Arthur and Vassilvitskii 2007): each centre is the best of a few points drawn with a probability proportional to
/// their squared distance to the centres so far.
fn plus_plus(points: &Array<f32>, norms: &[f32], k: usize, stream: &mut Stream) -> Array<f32> {
    let trials = 2 + (k as f64).ln() as usize;
    let mut chosen = vec![stream.below(points.rows())];
    let mut closest = squared_distances(points, norms, &points.select(&chosen));
    while chosen.len() < k {
        let total: f64 = closest.iter().map(|&distance| f64::from(distance)).sum();
        let candidates: Vec<usize> = (0..trials).map(|_| draw(&closest, stream.uniform_f64() * total)).collect();
        let distances = squared_distances(points, norms, &points.select(&candidates));
        let potential = |trial: usize| {
            let smaller = closest.iter().zip(distances.iter().skip(trial).step_by(trials));
            smaller.map(|(old, new)| f64::from(old.min(*new))).sum::<f64>()
        };
        let potentials: Vec<f64> = (0..trials).map(potential).collect();
        let best = (1..trials).fold(0, |best, trial| if potentials[trial] < potentials[best] { trial } else { best });
        chosen.push(candidates[best]);
        closest.iter_mut().zip(distances.iter().skip(best).step_by(trials)).for_each(|(old, new)| *old = old.min(*new));
    }
    points.select(&chosen)
}

/// The first point at which the running sum of `weights` exceeds `target`.
fn draw(weights: &[f32], target: f64) -> usize {
    let mut sum = 0.0;
    let found = weights.iter().position(|&weight| {
        sum += f64::from(weight);
        sum > target
    });
    found.or_else(|| weights.iter().rposition(|&weight| weight > 0.0)).unwrap_or(0)
}

fn squared_norms(points: &Array<f32>) -> Vec<f32> {
    (0..points.rows()).map(|row| points.row(row).iter().map(|value| value * value).sum()).collect()
}

/// `|x|² - 2 x·c + |c|²` for each point and centre, [N, K], never below 0.
fn squared_distances(points: &Array<f32>, norms: &[f32], centroids: &Array<f32>) -> Vec<f32> {
    let (k, dimension) = (centroids.rows(), centroids.row_len());
    let centre_norms = squared_norms(centroids);
    let mut distances =
        product(Matrix::new(&points.data, points.rows(), dimension), Matrix::new(&centroids.data, k, dimension).transposed());
    for (row, norm) in distances.chunks_exact_mut(k).zip(norms) {
        row.iter_mut().zip(&centre_norms).for_each(|(value, centre)| *value = (norm - 2.0 * *value + centre).max(0.0));
    }
    distances
}

fn mean_variance(points: &Array<f32>) -> f64 {
    let (count, dimension) = (points.rows() as f64, points.row_len());
    let (mut sums, mut squares) = (vec![0.0; dimension], vec![0.0; dimension]);
    for row in 0..points.rows() {
        for ((sum, square), &value) in sums.iter_mut().zip(&mut squares).zip(points.row(row)) {
            *sum += f64::from(value);
            *square += f64::from(value) * f64::from(value);
        }
    }
    let variances = sums.iter().zip(&squares).map(|(sum, square)| (square / count - (sum / count).powi(2)).max(0.0));
    variances.sum::<f64>() / dimension as f64
}

fn means(points: &Array<f32>, cluster: &[usize], k: usize) -> Array<f32> {
    let dimension = points.row_len();
    let (mut sums, mut sizes) = (vec![0.0_f64; k * dimension], vec![0.0_f64; k]);
    for (row, &cluster) in cluster.iter().enumerate() {
        sizes[cluster] += 1.0;
        let sum = &mut sums[cluster * dimension..(cluster + 1) * dimension];
        sum.iter_mut().zip(points.row(row)).for_each(|(sum, &value)| *sum += f64::from(value));
    }
    let data = sums.chunks_exact(dimension).zip(&sizes).flat_map(|(sum, size)| sum.iter().map(move |sum| (sum / size) as f32)).collect();
    Array::new(vec![k, dimension], data)
}

/// Numbers the clusters by their first point and computes what they are judged by.
fn finish(points: &Array<f32>, cluster: &[usize], k: usize) -> Clustering {
    let mut number = vec![usize::MAX; k];
    let mut next = 0;
    let cluster: Vec<usize> = cluster
        .iter()
        .map(|&old| {
            if number[old] == usize::MAX {
                number[old] = next;
                next += 1;
            }
            number[old]
        })
        .collect();
    let centroids = means(points, &cluster, k);
    let inertia = cluster.iter().enumerate().map(|(row, &cluster)| {
        points.row(row).iter().zip(centroids.row(cluster)).map(|(value, centre)| f64::from(value - centre).powi(2)).sum::<f64>()
    });
    let inertia = inertia.sum();
    Clustering { cluster, centroids, inertia }
}

#[cfg(test)]
mod tests {
    use dcu_nn::rng::Streams;

    use super::*;

    fn blobs(count: usize, centres: usize, spread: f32) -> Array<f32> {
        let mut stream = Streams::new(3, "test").stream("blobs");
        let data = (0..count).flat_map(|point| {
            let centre = (point % centres) as f32;
            [10.0 * centre, -7.0 * centre].map(|value| value + spread * stream.normal())
        });
        Array::new(vec![count, 2], data.collect())
    }

    #[test]
    fn separate_groups_are_found() {
        let clustering = cluster(&blobs(120, 6, 0.1), 6, &mut Streams::new(1, "test").stream("start")).unwrap();
        assert_eq!(clustering.cluster, (0..120).map(|point| point % 6).collect::<Vec<_>>());
        assert!(clustering.inertia < 120.0 * 2.0 * 0.02);
    }

    #[test]
    fn no_cluster_is_empty_even_with_repeated_points() {
        let mut data = vec![0.0; 40];
        data.extend((0..10).map(|value| value as f32));
        let points = Array::new(vec![50, 1], data);
        assert_eq!(distinct_rows(&points), 10);
        // More clusters than distinct points: without points of their own, some would be empty.
        for k in [10, 14] {
            let clustering = cluster(&points, k, &mut Streams::new(1, "test").stream("start")).unwrap();
            let sizes = (0..k).map(|cluster| clustering.cluster.iter().filter(|&&of_point| of_point == cluster).count());
            assert!(sizes.clone().all(|size| size > 0), "{:?}", sizes.collect::<Vec<_>>());
            assert!(clustering.centroids.data.iter().all(|value| value.is_finite()));
            assert_eq!(clustering.inertia, 0.0);
        }
    }

    #[test]
    fn an_empty_cluster_gets_the_farthest_point_that_is_not_alone() {
        let mut assignment = Assignment { cluster: vec![0, 0, 0, 2, 0], distance: vec![1.0, 5.0, 2.0, 9.0, 5.0] };
        assignment.fill_empty(4);
        assert_eq!(assignment.cluster, [0, 1, 0, 2, 3]);
        assert_eq!(assignment.distance, [1.0, 0.0, 2.0, 9.0, 0.0]);
    }

    #[test]
    fn points_that_no_distance_can_be_taken_to_are_refused() {
        let mut stream = Streams::new(1, "test").stream("start");
        for broken in [f32::NAN, f32::INFINITY, 1e19] {
            let mut points = blobs(20, 4, 0.1);
            assert_eq!(first_unusable_row(&points), None);
            points.data[2 * 13 + 1] = broken;
            assert_eq!(first_unusable_row(&points), Some(13));
            assert!(cluster(&points, 4, &mut stream).unwrap_err().to_string().contains("point 13 is not finite"));
        }
        for (points, k) in [(blobs(3, 3, 0.1), 4), (blobs(3, 3, 0.1), 0), (blobs(0, 1, 0.1), 0), (Array::new(vec![3, 0], vec![]), 1)] {
            assert!(cluster(&points, k, &mut stream).unwrap_err().to_string().contains("cannot be divided"));
        }
    }

    #[test]
    fn lloyd_never_ends_worse_than_it_started() {
        let points = blobs(300, 7, 6.0);
        let norms = squared_norms(&points);
        for seed in 0..5 {
            let start = plus_plus(&points, &norms, 12, &mut Streams::new(seed, "test").stream("start"));
            let started: f64 = Assignment::nearest(&points, &norms, &start).distance.iter().map(|&value| f64::from(value)).sum();
            let ended = cluster(&points, 12, &mut Streams::new(seed, "test").stream("start")).unwrap().inertia;
            assert!(ended <= started * 1.0001, "{ended} after {started}");
        }
    }
}
