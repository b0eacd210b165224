// What a training step does between convolutions, in as few passes over memory as it takes: batch
// norm with ReLU, bilinear resizing, 2x2 max-pooling beside its input, each with its gradient.
//
// Maps are channels last (N, H, W, C), C a multiple of 16, of bfloat16 or float. All is computed in
// float, sums over many pixels in double. Results do not depend on the number of threads: pixels
// are added up in chunks of a fixed size. Threads are those of torch's own OpenMP, by three
// functions that every runtime has on Linux (GCC's, LLVM's, Intel's).

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

extern "C" void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned);
extern "C" int omp_get_thread_num();
extern "C" int omp_get_num_threads();

namespace {

using Size = std::size_t;
using bf16 = std::uint16_t;
constexpr Size LANES = 16;     // channels that are computed at once
constexpr Size CHUNK = 16384;  // values whose sums are float
typedef float Lane __attribute__((vector_size(4 * LANES)));
typedef std::uint32_t Bits __attribute__((vector_size(4 * LANES)));
typedef std::uint16_t Half __attribute__((vector_size(2 * LANES)));

Lane load(const float *from) {
    Lane value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
Lane load(const bf16 *from) {
    Half half;
    std::memcpy(&half, from, sizeof half);
    return (Lane)(__builtin_convertvector(half, Bits) << 16);
}
Lane keep(Lane value, Bits where) { return (Lane)((Bits)value & where); }  // 0 elsewhere

void store(float *to, Lane value) { std::memcpy(to, &value, sizeof value); }
void store(bf16 *to, Lane value) {  // rounded to the nearest, ties to even
    const Bits bits = (Bits)value, number = (Bits)(value == value);
    const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Half half = __builtin_convertvector((rounded & number) | (~number & 0x7fc0), Half);
    std::memcpy(to, &half, sizeof half);
}

// f(i) for each i below count, shared by the threads.
template <class F> void share(Size count, int threads, F f) {
    struct Work { Size count; F &f; } work{count, f};
    const auto run = [](void *data) {
        Work &own = *static_cast<Work *>(data);
        const Size part = omp_get_thread_num(), parts = omp_get_num_threads();
        const Size end = own.count * (part + 1) / parts;
        for (Size i = own.count * part / parts; i < end; ++i) own.f(i);
    };
    if (threads > 1 && count > 1) GOMP_parallel(run, &work, threads, 0);
    else for (Size i = 0; i < count; ++i) f(i);
}

struct Chunks {  // of the pixels of maps
    Size pixels, channels, length, count;
    Chunks(Size pixels, Size channels)
        : pixels(pixels), channels(channels), length(std::max<Size>(1, CHUNK / channels)),
          count((pixels + length - 1) / length) {}
    Size size(Size i) const { return std::min(length, pixels - i * length); }
    Size start(Size i) const { return i * length * channels; }
};

// Sums of f(pixel, g) over pixels, for G groups of channels side by side, and so many pixels at
// once that no addition has to wait for another.
template <int G, class V, class F> void total(Size pixels, V (&sums)[G], F f) {
    constexpr int TOGETHER = 4 / G;
    V parts[TOGETHER][G]{};
    Size p = 0;
    for (; p + TOGETHER <= pixels; p += TOGETHER)
        for (int i = 0; i < G * TOGETHER; ++i) parts[i / G][i % G] += f(p + i / G, i % G);
    for (int g = 0; g < G; ++g) sums[g] = V{};
    for (int i = 0; i < G * TOGETHER; ++i) sums[i % G] += parts[i / G][i % G];
    for (; p < pixels; ++p)
        for (int g = 0; g < G; ++g) sums[g] += f(p, g);
}

struct Two {
    Lane a{}, b{};
    void operator+=(const Two &other) { a += other.a, b += other.b; }
};

template <int G> struct Norm {  // of G groups of channels, by the table that bn_relu makes
    Lane mean[G], scale[G], shift[G];
    Norm(const float *table, Size C, Size c) {
        for (int g = 0; g < G; ++g, c += LANES) {
            mean[g] = load(table + c);
            scale[g] = load(table + C + c);
            shift[g] = load(table + 2 * C + c);
        }
    }
    Lane operator()(Lane x, int g) const { return x * scale[g] + shift[g]; }
};

// f(norm, g, channel, place) for each LANES values of maps.
template <int G, class F> void each(const Chunks &chunks, const float *table, int threads, F f) {
    share(chunks.count, threads, [=](Size i) {
        for (Size c = 0; c < chunks.channels; c += G * LANES) {
            const Norm<G> norm(table, chunks.channels, c);
            for (Size p = 0; p < chunks.size(i); ++p)
                for (int g = 0; g < G; ++g) {
                    const Size channel = c + g * LANES;
                    f(norm, g, channel, chunks.start(i) + p * chunks.channels + channel);
                }
        }
    });
}

// Mean and (biased) variance of each channel: those of chunks, each in two passes over what the
// processor's cache holds, put together (Chan et al. 1982). Where there is another map, it is added
// to x before.
template <int G, class T>
void moments(T *x, const T *other, const Chunks &chunks, double *mean, double *variance,
             int threads) {
    const Size C = chunks.channels;
    std::vector<float> of_chunks(2 * C * chunks.count);
    float *const means = of_chunks.data(), *const squares = means + C * chunks.count;
    share(chunks.count, threads, [=](Size i) {
        const Size n = chunks.size(i);
        for (Size k = chunks.start(i); other && k < chunks.start(i) + n * C; k += LANES)
            store(x + k, load(x + k) + load(other + k));
        for (Size c = 0; c < C; c += G * LANES) {
            const T *from = x + chunks.start(i) + c;
            Lane own[G], square[G];
            total(n, own, [=](Size p, int g) { return load(from + p * C + g * LANES); });
            for (int g = 0; g < G; ++g) own[g] /= (float)n;
            total(n, square, [=](Size p, int g) {
                const Lane apart = load(from + p * C + g * LANES) - own[g];
                return apart * apart;
            });
            std::memcpy(means + i * C + c, own, sizeof own);
            std::memcpy(squares + i * C + c, square, sizeof square);
        }
    });
    std::fill_n(mean, C, 0.0), std::fill_n(variance, C, 0.0);
    for (Size i = 0; i < chunks.count; ++i)
        for (Size c = 0; c < C; ++c) mean[c] += means[i * C + c] * (double)chunks.size(i);
    for (Size c = 0; c < C; ++c) mean[c] /= chunks.pixels;
    for (Size i = 0; i < chunks.count; ++i)
        for (Size c = 0; c < C; ++c) {
            const double apart = means[i * C + c] - mean[c];
            variance[c] += (squares[i * C + c] + chunks.size(i) * apart * apart) / chunks.pixels;
        }
}

// y = ReLU(batch norm of x), or of x + other, which takes the place of x. Fills table with rows of
// mean, scale, shift and 1 / deviation, from the batch's own statistics, which the running ones
// follow, or (without other) from the running ones.
template <int G, class T>
void bn_relu(T *x, const T *other, T *y, Size pixels, Size C, const float *weight,
             const float *bias, float *running_mean, float *running_variance, float *table,
             float eps, float momentum, int of_batch, int threads) {
    const Chunks chunks(pixels, C);
    std::vector<double> mean(running_mean, running_mean + C);
    std::vector<double> variance(running_variance, running_variance + C);
    if (of_batch) moments<G>(x, other, chunks, mean.data(), variance.data(), threads);
    for (Size c = 0; c < C; ++c) {
        const float inverse = 1 / std::sqrt(variance[c] + eps);
        table[c] = mean[c], table[C + c] = inverse * weight[c];
        table[2 * C + c] = bias[c] - mean[c] * table[C + c], table[3 * C + c] = inverse;
        if (!of_batch) continue;
        const double unbiased = variance[c] * pixels / (pixels - 1.0);
        running_mean[c] += momentum * (mean[c] - running_mean[c]);
        running_variance[c] += momentum * (unbiased - running_variance[c]);
    }
    each<G>(chunks, table, threads, [=](const Norm<G> &norm, int g, Size, Size at) {
        const Lane z = norm(load(x + at), g);
        store(y + at, keep(z, ~(Bits)(z < 0.0f)));
    });
}

// The gradients of bn_relu, through the batch's own statistics where it had those.
template <int G, class T>
void bn_relu_backward(const T *x, const T *dy, T *dx, Size pixels, Size C, const float *table,
                      float *dweight, float *dbias, int of_batch, int threads) {
    const Chunks chunks(pixels, C);
    std::vector<float> of_chunks(2 * C * chunks.count), of_all(2 * C);
    float *const sums = of_chunks.data(), *const means = of_all.data();
    share(chunks.count, threads, [=](Size i) {
        for (Size c = 0; c < C; c += G * LANES) {
            const Norm<G> norm(table, C, c);
            const Size start = chunks.start(i) + c;
            Two two[G];
            total(chunks.size(i), two, [=](Size p, int g) {
                const Size at = start + p * C + g * LANES;
                const Lane value = load(x + at);
                const Lane dz = keep(load(dy + at), ~(Bits)(norm(value, g) <= 0.0f));
                return Two{dz, dz * (value - norm.mean[g])};
            });
            for (int g = 0; g < G; ++g) {
                store(sums + 2 * i * C + c + g * LANES, two[g].a);
                store(sums + (2 * i + 1) * C + c + g * LANES, two[g].b);
            }
        }
    });
    std::vector<double> whole(2 * C);
    for (Size i = 0; i < 2 * C * chunks.count; ++i) whole[i % (2 * C)] += sums[i];
    for (Size c = 0; c < C; ++c) {
        const double inverse = table[3 * C + c];
        dbias[c] = whole[c], dweight[c] = whole[C + c] * inverse;
        means[c] = of_batch ? whole[c] / pixels : 0;
        means[C + c] = of_batch ? whole[C + c] / pixels * inverse * inverse : 0;
    }
    each<G>(chunks, table, threads, [=](const Norm<G> &norm, int g, Size c, Size at) {
        const Lane value = load(x + at);
        const Lane dz = keep(load(dy + at), ~(Bits)(norm(value, g) <= 0.0f));
        const Lane along = (value - norm.mean[g]) * load(means + C + c);
        store(dx + at, (dz - load(means + c) - along) * norm.scale[g]);
    });
}

// Rows and columns by their taps: new i is the sum of weights[i][k] * old starts[i] + k, k < count.
template <class T>
void resize(const T *x, T *y, Size maps, Size H, Size W, Size new_H, Size new_W, Size C,
            const std::int32_t *row_starts, const float *row_weights, Size row_count,
            const std::int32_t *starts, const float *weights, Size count, int threads) {
    share(maps * new_H, threads, [=](Size i) {
        static thread_local std::vector<float> space;
        space.resize(W * C);
        float *const line = space.data();
        const Size row = i % new_H;
        const T *from = x + (i / new_H * H + row_starts[row]) * W * C;
        for (Size at = 0; at < W * C; at += LANES) {
            Lane sum{};
            for (Size k = 0; k < row_count; ++k)
                sum += row_weights[row * row_count + k] * load(from + k * W * C + at);
            store(line + at, sum);
        }
        for (Size j = 0; j < new_W; ++j)
            for (Size c = 0; c < C; c += LANES) {
                Lane sum{};
                for (Size k = 0; k < count; ++k)
                    sum += weights[j * count + k] * load(line + (starts[j] + k) * C + c);
                store(y + (i * new_W + j) * C + c, sum);
            }
    });
}

// y: 2x2 maxima of x. Or, where dx is given: dx = beside + the gradient of these for their dy.
template <class T>
void pool(const T *x, T *y, const T *dy, const T *beside, T *dx, Size maps, Size H, Size W, Size C,
          int threads) {
    const Size new_H = (H + 1) / 2, new_W = (W + 1) / 2;
    share(maps * new_H, threads, [=](Size i) {
        const Size top = i / new_H * H + i % new_H * 2, down = i % new_H * 2 + 1 < H;
        for (Size j = 0; j < new_W * C; j += LANES) {
            const Size left = j / C * 2, right = left + 1 < W, first = (top * W + left) * C + j % C;
            const Size at[4] = {first, first + right * C, first + down * W * C,
                                first + (down * W + right) * C};  // at the edge, some twice
            Lane most = load(x + at[0]);
            for (int k = 1; k < 4; ++k) {
                const Lane other = load(x + at[k]);
                const Bits more = (Bits)(other > most) | (Bits)(other != other);
                most = keep(other, more) + keep(most, ~more);
            }
            if (!dx) { store(y + i * new_W * C + j, most); continue; }
            Lane given = load(dy + i * new_W * C + j);  // to the first of equal maxima
            for (int k = 0; k < 4; ++k) {
                if ((k % 2 && !right) || (k / 2 && !down)) continue;
                const Bits here = (Bits)(load(x + at[k]) == most);
                store(dx + at[k], load(beside + at[k]) + keep(given, here));
                given = keep(given, ~here);
            }
        }
    });
}

}  // namespace

// The versions of each: for float and bfloat16, then the same for multiples of 64 channels.
#define OF_TYPES(name) (void *)name<float>, (void *)name<bf16>
#define OF_GROUPS(name) \
    (void *)name<1, float>, (void *)name<1, bf16>, (void *)name<4, float>, (void *)name<4, bf16>
extern "C" {
extern void *const bn_relu_versions[] = {OF_GROUPS(bn_relu)};
extern void *const bn_relu_backward_versions[] = {OF_GROUPS(bn_relu_backward)};
extern void *const resize_versions[] = {OF_TYPES(resize)};
extern void *const pool_versions[] = {OF_TYPES(pool)};
}
