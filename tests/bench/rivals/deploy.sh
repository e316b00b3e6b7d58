#!/bin/sh
# The deployment of the seed documents; only names and paths are this host's.
#
# Usage: deploy.sh VERSION

set -e
export COMPOSER_HOME=/srv/bench/seed/composer COMPOSER_ALLOW_SUPERUSER=1
php=$(ls /etc/php)
[ -d /srv/bench/seed/lms ] || {
    git clone -q /srv/bench/lms.git /srv/bench/seed/lms
    cp /srv/bench/seed/shared/.env /srv/bench/seed/lms/backend/.env
}
cd /srv/bench/seed/lms
git fetch -q --tags origin
git checkout -q "$1"
cd backend
composer install --no-dev --no-interaction
php artisan migrate --force
php artisan cache:clear
php artisan config:clear
php artisan route:clear
php artisan view:clear
systemctl restart "php$php-fpm"
systemctl restart nginx
