// Memory of tensors: one stretch of addresses of their own, from which the smallest free block that is large enough is taken.
//
// A step takes and gives back thousands of tensors, and meanwhile things are made that stay, such as what oneDNN prepares for
// products of a new size.  In a heap for both, these come to lie between the tensors, and part what the tensors leave in ever
// more pieces, which the C library looks through one by one.  Here what tensors leave grows together again, and a block is found
// in logarithmic time.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <fstream>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <utility>

namespace {

constexpr size_t LEAST = 1 << 12;  // bytes; what is smaller is taken where it was before
constexpr size_t STEP = 1 << 7;    // two lines of the cache: no operation asks for more of a place
const c10::Device CPU(c10::DeviceType::CPU);

class Stretch final : public c10::Allocator {
  public:
    Stretch(char* place, size_t size, c10::Allocator* before) : begin_(place), end_(place + size), before_(before) {
        add(place, size);
    }

    c10::DataPtr allocate(size_t size) override {
        // Too large a size is an error that the one before tells of.
        const bool fits = size >= LEAST && size <= static_cast<size_t>(end_ - begin_);
        char* place = fits ? take((size + STEP - 1) / STEP * STEP) : nullptr;
        if (place == nullptr) return before_->allocate(size);
        return {place, place, &give_back, CPU};
    }

    c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

    void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }

    void lock() { mutex_.lock(); }
    void unlock() { mutex_.unlock(); }

    // Hand pages of free blocks to the system; they come back as zeros when they are touched.
    void release() {
        const std::lock_guard<std::mutex> held(mutex_);
        // Some processors have pages of 64 KiB, and the system would take the whole page of whatever part it is given.
        const size_t page = sysconf(_SC_PAGESIZE);
        for (const auto& [size, place] : free_) {
            // The stretch begins with a page, so pages are counted from there.
            const size_t first = (place - begin_ + page - 1) / page * page, last = (place - begin_ + size) / page * page;
            if (first < last) madvise(begin_ + first, last - first, MADV_DONTNEED);
        }
    }

    static Stretch* only;

  private:
    struct Block {
        size_t size;
        bool free;
    };

    char* take(size_t size) {
        const std::lock_guard<std::mutex> held(mutex_);
        const auto found = free_.lower_bound({size, nullptr});
        if (found == free_.end()) return nullptr;
        const auto [whole, place] = *found;
        free_.erase(found);
        blocks_[place] = {size, false};
        told(place, static_cast<int64_t>(size));
        if (whole > size) add(place + size, whole - size);
        return place;
    }

    void add(char* place, size_t size) {
        blocks_[place] = {size, true};
        free_.emplace(size, place);
    }

    void give(char* place) {
        const std::lock_guard<std::mutex> held(mutex_);
        auto at = blocks_.find(place);
        size_t size = at->second.size;
        told(place, -static_cast<int64_t>(size));
        const auto next = std::next(at);
        if (next != blocks_.end() && next->second.free) {
            size += next->second.size;
            free_.erase({next->second.size, next->first});
            blocks_.erase(next);
        }
        if (at != blocks_.begin()) {
            const auto previous = std::prev(at);
            if (previous->second.free) {
                free_.erase({previous->second.size, previous->first});
                size += previous->second.size;
                place = previous->first;
                blocks_.erase(at);
            }
        }
        add(place, size);
    }

    // What PyTorch's profiler asks of whoever hands out memory.
    void told(char* place, int64_t size) {
        taken_ += size;
        c10::reportMemoryUsageToProfiler(place, size, taken_, end_ - begin_, CPU);
    }

    // Serves blocks of both, for a tensor does not know which of the two it was given.
    static void give_back(void* data) {
        char* place = static_cast<char*>(data);
        if (place >= only->begin_ && place < only->end_) {
            only->give(place);
        } else {
            only->before_->raw_deleter()(data);
        }
    }

    char *begin_, *end_;
    c10::Allocator* before_;
    size_t taken_ = 0;
    std::mutex mutex_;
    std::map<char*, Block> blocks_;             // all, by place
    std::set<std::pair<size_t, char*>> free_;  // the free ones, the smallest first
};

Stretch* Stretch::only = nullptr;

// Whether addresses count as memory here, by a limit on the process or for the whole machine: all else would go short of them.
bool addresses_count() {
    for (const auto what : {RLIMIT_AS, RLIMIT_DATA}) {
        rlimit limit;
        if (getrlimit(what, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY) return true;
    }
    constexpr int STRICT = 2;  // as in proc_sys_vm(5)
    int overcommit = STRICT;
    std::ifstream("/proc/sys/vm/overcommit_memory") >> overcommit;
    return overcommit == STRICT;
}

void keep(size_t size) {
    if (addresses_count()) return;
    void* place = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (place == MAP_FAILED) return;
    madvise(place, size, MADV_HUGEPAGE);
    Stretch::only = new Stretch(static_cast<char*>(place), size, c10::GetCPUAllocator());
    pthread_atfork([] { Stretch::only->lock(); }, [] { Stretch::only->unlock(); }, [] { Stretch::only->unlock(); });
    c10::SetCPUAllocator(Stretch::only);
}

}  // namespace

// Take tensors from a stretch of so many bytes from now on; of no effect a second time, or where the system has no such stretch.
extern "C" void keep_tensors(int64_t size) {
    static std::once_flag once;
    std::call_once(once, keep, size);
}

extern "C" void release_tensors() {
    if (Stretch::only != nullptr) Stretch::only->release();
}
