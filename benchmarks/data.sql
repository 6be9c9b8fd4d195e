-- Tables as an appointment business has them, about one gigabyte for every 2.9 million bookings, indexes included.
-- Neither filler nor noise: words, names, prices and times compress well, identifiers and tokens hardly, so that
-- zstd at level 3 makes about 2.5 to 3 of it, as of real tables.
-- Variables: bookings (rows), part and parts (several sessions each write their share of the same tables).

SELECT setseed(0.42 / :part) \g /dev/null

INSERT INTO customers
SELECT n, gen_random_uuid(),
       (:'given'::text[])[1 + floor(random() * 40)::int] || ' ' || (:'family'::text[])[1 + floor(random() * 40)::int],
       'c' || n || '.' || substr(md5(random()::text), 1, 8) || '@example.com',
       '+1' || (2000000000 + floor(random() * 7999999999))::bigint,
       timestamptz '2021-01-01' + random() * interval '1600 days',
       jsonb_build_object('channel', (ARRAY['email', 'sms', 'none'])[1 + floor(random() * 3)::int],
                          'visits', floor(random() * 90)::int, 'token', md5(random()::text))
FROM generate_series(:part, :bookings / 12, :parts) AS n;

INSERT INTO bookings
SELECT n, gen_random_uuid(), 1 + floor(random() * (:bookings / 12))::int, 1 + floor(random() * 400)::int,
       1 + floor(random() * 60)::int,
       (ARRAY['confirmed', 'completed', 'completed', 'completed', 'cancelled', 'no_show'])[1 + floor(random() * 6)::int],
       timestamptz '2022-01-01' + n * interval '17 seconds' + random() * interval '20 days',
       timestamptz '2022-01-01' + n * interval '17 seconds',
       1500 + floor(random() * 9000)::int,
       concat_ws(' ', w[1 + floor(random() * 100)::int], w[1 + floor(random() * 100)::int],
                 w[1 + floor(random() * 100)::int], w[1 + floor(random() * 100)::int], w[1 + floor(random() * 100)::int],
                 CASE WHEN n % 3 = 0 THEN w[1 + floor(random() * 100)::int] || ' ' || w[1 + floor(random() * 100)::int]
                      || ' ' || w[1 + floor(random() * 100)::int] END)
FROM generate_series(:part, :bookings, :parts) AS n, (SELECT :'words'::text[]) AS vocabulary (w);

INSERT INTO payments
SELECT n, n, 1500 + floor(random() * 9000)::int, 'usd',
       'pi_' || replace(encode(decode(md5(random()::text), 'hex'), 'base64'), '=', ''),
       timestamptz '2022-01-01' + n * interval '17 seconds' + random() * interval '2 hours',
       (ARRAY['card', 'card', 'card', 'cash', 'wallet'])[1 + floor(random() * 5)::int]
FROM generate_series(:part, :bookings * 3 / 4, :parts) AS n;
